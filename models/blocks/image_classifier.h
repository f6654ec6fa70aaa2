// Small networks over images: convolutions, a dense layer, classes
// (families/image_classifier.yaml). A row of a batch is an image: tokens_BT are its pixels (B,
// channels * size * size), channel by channel; targets_BT (B, 1) is its class.
//
// Several copies of such a network can run as one (ModelConfig::copies): every weight is (copies,
// ...), rows [c B / copies, (c + 1) B / copies) are copy c's, and the training loss is the SUM over
// copies of each one's mean, so that each copy's gradient is the one it would have alone. That is
// how many small clients train at the price of a few.
#pragma once

#include "models/model.h"

namespace shoal {

bool IsClassifier(const ModelConfig& config);
// Whether ModelConfig::copies may be above 1.
bool CanStackCopies(const ModelConfig& config);

// InvalidArgument: an image that the convolutions' maxima shrink to nothing; several
// tensor-parallel ranks.
absl::StatusOr<Model> BuildImageClassifier(const ModelConfig& config, const TensorPlace& place);

}  // namespace shoal
