// What a run of federated averaging keeps beside the server's weights and states, as checkpoints
// hold it.
#include <nlohmann/json.hpp>

#include <ATen/ops/zeros_like.h>

#include "absl/strings/str_format.h"
#include "trainer/federated/federated_averaging.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

std::vector<StatePiece> FederatedAveraging::Pieces(bool saving) const {
  std::vector<StatePiece> pieces;
  const auto add = [&](const std::string& prefix, const Tensor& vector) {
    for (StatePiece& piece : vector_.Pieces(prefix, vector, saving))
      pieces.push_back(std::move(piece));
  };
  if (scaffold()) add("scaffold", control_);
  for (const auto& [version, weights] : versions_) {
    if (version < round_) add(absl::StrCat("round-", version), weights);
  }
  for (const auto& [client, memory] : memories_) {
    const std::string prefix = absl::StrCat("client-", client);
    if (memory.control.defined()) add(absl::StrCat(prefix, "/scaffold"), memory.control);
    if (!memory.states) continue;
    for (const auto& [name, vector] : memory.states->vectors)
      add(absl::StrCat(prefix, "/", name), vector);
  }
  return pieces;
}

std::vector<StatePiece> FederatedAveraging::PiecesToSave() const { return Pieces(true); }

void FederatedAveraging::AgreeOnClients() {
  Json mine = Json::array();
  for (const auto& [client, memory] : memories_)
    mine.push_back({client, memory.states ? memory.states->updates : 0});
  remembered_.clear();
  for (const std::string& text : AllGatherStrings(parts_.outer, mine.dump())) {
    for (const Json& client : Json::parse(text)) {
      remembered_.push_back(client[0].get<int64_t>());
      remembered_.push_back(client[1].get<int64_t>());
    }
  }
}

std::string FederatedAveraging::Progress() const {
  Json versions = Json::array();
  for (const auto& [version, weights] : versions_) {
    if (version < round_) versions.push_back(version);
  }
  Json progress = {{"round", round_},
                   {"updates", updates_},
                   {"tokens", tokens_},
                   {"versions", versions},
                   {"clients_and_updates", remembered_}};
  Json history = Json::array();
  for (const PrivacyEvent& event : accountant_.history())
    history.push_back({event.sampling_rate, event.noise_multiplier, event.rounds});
  progress["privacy"] = {{"history", history},
                         {"planned_for", PrivacyPlan()},
                         {"noise_multiplier", noise_multiplier_}};
  // As text that reads back to the same bits.
  if (adaptive_clip_) progress["clip"] = absl::StrFormat("%.17g", adaptive_clip_->clip());
  return progress.dump();
}

absl::StatusOr<std::vector<StatePiece>> FederatedAveraging::Restore(const std::string& progress) {
  SHOAL_ASSIGN_OR_RETURN(const ClientTrainer* const trainer, parts_.trainer(1));
  const std::vector<std::string> states = trainer->state_names();
  std::vector<double> planned_for;
  double noise_multiplier = 0;
  try {
    const Json json = Json::parse(progress);
    round_ = json.at("round").get<int64_t>();
    updates_ = json.at("updates").get<int64_t>();
    tokens_ = json.at("tokens").get<int64_t>();
    for (const Json& version : json.at("versions"))
      versions_[version.get<int64_t>()] = at::zeros_like(mean_);
    if (adaptive_clip_) adaptive_clip_->Restore(std::stod(json.at("clip").get<std::string>()));
    const Json& privacy = json.at("privacy");
    for (const Json& event : privacy.at("history")) {
      SHOAL_RETURN_IF_ERROR(accountant_.Compose({.sampling_rate = event.at(0).get<double>(),
                                                 .noise_multiplier = event.at(1).get<double>(),
                                                 .rounds = event.at(2).get<int64_t>()}));
    }
    planned_for = privacy.at("planned_for").get<std::vector<double>>();
    noise_multiplier = privacy.at("noise_multiplier").get<double>();
    const auto clients = json.at("clients_and_updates").get<std::vector<int64_t>>();
    for (size_t i = 0; i + 1 < clients.size(); i += 2) {
      if (clients[i] % groups() != parts_.outer.rank()) continue;
      Memory& memory = memories_[clients[i]];
      if (scaffold()) memory.control = at::zeros_like(mean_);
      if (!options_.federated.keep_optimizer_state()) continue;
      memory.states.emplace(KeptStates{.vectors = {}, .updates = clients[i + 1]});
      for (const std::string& name : states) memory.states->vectors[name] = at::zeros_like(mean_);
    }
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint is not of a federated run with the recipe's options: ", error.what()));
  }
  SHOAL_RETURN_IF_ERROR(ResumePrivacy(planned_for, noise_multiplier));
  for (int64_t round = 0; round < round_; ++round) planner_->Plan(round);
  return Pieces(/*saving=*/false);
}

std::vector<std::string> FederatedAveraging::Describe() const {
  const FederatedSection& federated = options_.federated;
  int64_t fewest = INT64_MAX, most = 0, examples = 0;
  for (const std::vector<int64_t>& client : parts_.clients) {
    const auto count = static_cast<int64_t>(client.size());
    fewest = std::min(fewest, count);
    most = std::max(most, count);
    examples += count;
  }
  std::vector<std::string> lines = {
      absl::StrFormat(
          "clients   %d with %d to %d examples, %d in all; %g a round, %s", parts_.clients.size(),
          fewest, most, examples, clients_a_round_,
          federated.asynchronous().buffer_size() > 0 ? "on a virtual clock" : "in step"),
      absl::StrFormat("groups    %d of %d rank%s", groups(), parts_.mesh.control().size(),
                      parts_.mesh.control().size() == 1 ? "" : "s")};
  if (const std::optional<double> epsilon = PlannedEpsilon()) {
    lines.push_back(absl::StrFormat(
        "privacy   noise multiplier %.4f: (%.3f, %g)-differential privacy after %d rounds%s",
        noise_multiplier_, *epsilon, federated.privacy().delta(), options_.rounds,
        federated.sampling() == FederatedSection::poisson ||
                clients_a_round_ == static_cast<double>(parts_.clients.size())
            ? ""
            : ", accounted as if each client were sampled by its own coin (sampling: poisson)"));
  }
  return lines;
}

}  // namespace shoal
