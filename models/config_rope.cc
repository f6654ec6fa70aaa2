#include "models/config_rope.h"

#include <cmath>
#include <set>

namespace shoal {
namespace {

class RopeReader {
 public:
  RopeReader(const ModelFamily::RopeKeys& keys, Json& config, int64_t max_positions,
             std::vector<ConfigIssue>& issues)
      : keys_(keys),
        config_(config),
        original_(static_cast<double>(max_positions)),
        issues_(issues) {}

  RopeOptions Read() {
    rope_.theta = keys_.default_theta;
    if (const Json* theta = FindGiven(config_, keys_.theta))
      Set(*theta, keys_.theta, &rope_.theta, 1);
    if (FindSection()) ReadSection();
    if (const Json* outer = FindGiven(config_, "original_max_position_embeddings")) {
      Set(*outer, "original_max_position_embeddings", &original_, 0);
    }
    rope_.original_max_positions = static_cast<int64_t>(original_);
    return rope_;
  }

 private:
  bool FindSection() {
    for (const std::string& key : {keys_.scaling, keys_.parameters}) {
      section_ = FindGiven(config_, key);
      name_ = key;
      if (!section_ || section_->empty()) continue;
      if (section_->is_object()) return true;
      Issue(key, absl::StrCat("got ", ShowJson(*section_), ", expected a map"));
      return false;
    }
    return false;
  }

  void ReadSection() {
    read_ = {"rope_type", "type"};
    Number("rope_theta", &rope_.theta, 1);
    double partial = 1;
    Number("partial_rotary_factor", &partial, 0);
    if (partial != 1)
      Issue(Path("partial_rotary_factor"), absl::StrCat("got ", partial, ", only 1 is supported"));
    const Json* type = FindGiven(*section_, "rope_type");
    if (!type) type = FindGiven(*section_, "type");
    if (type && !type->is_string()) {
      return Issue(Path("rope_type"), absl::StrCat("got ", ShowJson(*type), ", expected a word"));
    }
    const std::string name = type ? type->get<std::string>() : "default";
    if (name == "linear") {
      rope_.type = RopeOptions::Type::kLinear;
      Required("factor", &rope_.factor);
    } else if (name == "llama3") {
      ReadLlama3();
    } else if (name == "yarn") {
      ReadYarn();
    } else if (name != "default") {
      return Issue(Path("rope_type"),
                   absl::StrCat("\"", name,
                                "\" is not supported; supported: default, linear, llama3, yarn"));
    }
    for (const auto& [key, value] : section_->items()) {
      // Of the default type, numbers are left over from another; a map is a set of settings for
      // some layers.
      if (!read_.contains(key) && (name != "default" || value.is_object())) {
        Issue(Path(key), absl::StrCat("is not known for rope_type ", name));
      }
    }
  }

  void ReadLlama3() {
    rope_.type = RopeOptions::Type::kLlama3;
    Required("factor", &rope_.factor);
    Required("low_freq_factor", &rope_.low_frequency_factor);
    Required("high_freq_factor", &rope_.high_frequency_factor);
    Number("original_max_position_embeddings", &original_, 0);
    if (!(rope_.high_frequency_factor > rope_.low_frequency_factor)) {
      Issue(Path("high_freq_factor"),
            absl::StrCat("got ", rope_.high_frequency_factor,
                         ", expected more than low_freq_factor = ", rope_.low_frequency_factor));
    }
  }

  void ReadYarn() {
    rope_.type = RopeOptions::Type::kYarn;
    Required("factor", &rope_.factor);
    Number("original_max_position_embeddings", &original_, 0);
    Number("beta_fast", &rope_.beta_fast, 0);
    Number("beta_slow", &rope_.beta_slow, 0);
    double mscale = 0, mscale_all_dim = 0, attention_factor = 0;
    Number("mscale", &mscale, -1);
    Number("mscale_all_dim", &mscale_all_dim, -1);
    Number("attention_factor", &attention_factor, 0);
    const auto scale = [&](double m) {
      return rope_.factor <= 1 ? 1.0 : 0.1 * m * std::log(rope_.factor) + 1.0;
    };
    rope_.attention_factor =
        mscale != 0 && mscale_all_dim != 0 ? scale(mscale) / scale(mscale_all_dim) : scale(1);
    if (attention_factor > 0) rope_.attention_factor = attention_factor;
    read_.insert("truncate");
    if (const Json* truncate = FindGiven(*section_, "truncate")) {
      if (!truncate->is_boolean()) return Issue(Path("truncate"), "expected true or false");
      rope_.truncate = truncate->get<bool>();
    }
  }

  void Required(const std::string& key, double* out) {
    if (!FindGiven(*section_, key)) Issue(Path(key), "is missing");
    Number(key, out, 0);
  }

  // A number of the section, left as it is if it is not there.
  void Number(const std::string& key, double* out, double min) {
    read_.insert(key);
    if (const Json* value = FindGiven(*section_, key)) Set(*value, Path(key), out, min);
  }

  // A finite number above `min`, below what integers of double precision hold.
  void Set(const Json& value, const std::string& path, double* out, double min) {
    if (!value.is_number() || !(value.get<double>() > min) || !(value.get<double>() < 1e15)) {
      return Issue(path, absl::StrCat("got ", ShowJson(value), ", expected a number above ", min));
    }
    *out = value.get<double>();
  }

  std::string Path(const std::string& key) const { return absl::StrCat(name_, ".", key); }
  void Issue(const std::string& key, const std::string& message) {
    issues_.push_back({key, message});
  }

  const ModelFamily::RopeKeys& keys_;
  Json& config_;
  double original_;
  std::vector<ConfigIssue>& issues_;
  RopeOptions rope_;
  Json* section_ = nullptr;
  std::string name_;            // Of the section
  std::set<std::string> read_;  // Its keys that mean something
};

}  // namespace

RopeOptions ReadRope(const ModelFamily::RopeKeys& keys, Json& config, int64_t max_positions,
                     std::vector<ConfigIssue>& issues) {
  return RopeReader(keys, config, max_positions, issues).Read();
}

}  // namespace shoal
