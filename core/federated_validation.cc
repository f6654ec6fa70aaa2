#include "core/federated_validation.h"

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

class FederatedValidator {
 public:
  FederatedValidator(const LoadedRecipe& recipe, const ReportError& report)
      : recipe_(recipe), federated_(recipe.proto.federated()), report_(report) {}

  void Run() {
    Length();
    Clients();
    Data();
    Algorithm();
    Aggregation();
    Privacy();
    Masks();
    Clock();
    if (recipe_.IsSet("sample.prompts") && reads_csv_)
      Complain("sample.prompts", "an image classifier writes no text");
  }

 private:
  void Complain(const std::string& key, std::string message) { report_(key, std::move(message)); }
  // For a key that makes sense only where `condition` holds.
  void Only(bool condition, const std::string& key, const std::string& where) {
    if (!condition && recipe_.IsSet(key)) Complain(key, absl::StrCat("is of ", where));
  }

  void Length() {
    const TrainingSection& training = recipe_.proto.training();
    if (!training.has_max_steps())
      Complain("training", "a federated run counts rounds, expected max_steps");
    Only(false, "training.num_train_epochs", "tasks without rounds, expected max_steps");
    Only(false, "training.max_tokens", "tasks without rounds, expected max_steps");
    if (federated_.has_local_steps() && federated_.has_local_epochs())
      Complain("federated.local_epochs",
               "given beside federated.local_steps, expected one of them");
  }

  void Clients() {
    const bool natural = federated_.partition() == FederatedSection::natural;
    if (natural && federated_.has_num_clients())
      Complain("federated.num_clients", "is what the data gives with partition natural");
    if (!natural && !federated_.has_num_clients())
      Complain("federated", "expected num_clients, or partition natural");
    if (federated_.num_clients() > INT32_MAX)
      Complain("federated.num_clients",
               absl::StrCat("got ", federated_.num_clients(), ", expected at most ", INT32_MAX));
    if (federated_.has_num_clients() && federated_.clients_per_round() > federated_.num_clients()) {
      Complain("federated.clients_per_round",
               absl::StrCat("got ", federated_.clients_per_round(),
                            ", expected at most num_clients ", federated_.num_clients()));
    }
    const bool dirichlet = federated_.partition() == FederatedSection::dirichlet;
    Only(dirichlet, "federated.dirichlet_alpha", "partition dirichlet");
    Only(dirichlet, "federated.min_examples", "partition dirichlet");
    Only(federated_.partition() == FederatedSection::shards, "federated.shards_per_client",
         "partition shards");
  }

  void Data() {
    const DataSection& data = recipe_.proto.data();
    int csv = 0;
    for (const DataSource& source : data.train()) csv += source.format() == DataSource::csv;
    reads_csv_ = csv > 0;
    if (csv > 0 && csv < data.train_size())
      Complain("data.train", "CSV files beside others, expected one kind");
    for (int i = 0; i < data.eval_size(); ++i) {
      if ((data.eval(i).format() == DataSource::csv) != reads_csv_)
        Complain(absl::StrCat("data.eval.", i), "expected the kind of data.train");
    }
    Only(reads_csv_ && federated_.partition() == FederatedSection::natural,
         "federated.client_column", "partition natural and CSV files");
  }

  void Algorithm() {
    const OptimizerSection& optimizer = recipe_.proto.optimizer();
    Only(federated_.algorithm() == FederatedSection::fedprox, "federated.proximal_mu",
         "algorithm fedprox");
    const FederatedServer& server = federated_.server();
    const bool sgd = server.name() == FederatedServer::sgd;
    for (const char* key : {"momentum", "nesterov"})
      Only(sgd, absl::StrCat("federated.server.", key), "name sgd");
    for (const char* key : {"beta1", "tau"})
      Only(!sgd, absl::StrCat("federated.server.", key), "names adam, yogi and adagrad");
    Only(!sgd && server.name() != FederatedServer::adagrad, "federated.server.beta2",
         "names adam and yogi");
    Only(server.name() == FederatedServer::adam, "federated.server.bias_correction", "name adam");
    if (server.nesterov() && server.momentum() == 0)
      Complain("federated.server.nesterov", "needs momentum, expected momentum above 0");
    if (federated_.algorithm() != FederatedSection::scaffold) return;
    if (optimizer.name() != OptimizerSection::sgd || optimizer.momentum() != 0 ||
        optimizer.weight_decay() != 0) {
      Complain("federated.algorithm",
               "scaffold's control variates are of plain SGD, expected optimizer.name: sgd without "
               "momentum and weight_decay");
    }
    if (federated_.aggregation() != FederatedSection::mean)
      Complain("federated.aggregation", "scaffold averages, expected mean");
  }

  void Aggregation() {
    using F = FederatedSection;
    const F::Aggregation rule = federated_.aggregation();
    Only(rule == F::trimmed_mean, "federated.trim", "aggregation trimmed_mean");
    Only(rule == F::krum, "federated.num_byzantine", "aggregation krum");
    Only(rule == F::krum, "federated.krum_selected", "aggregation krum");
    if (rule == F::mean) return;
    Only(federated_.weighting() == F::equal, "federated.weighting",
         "aggregation mean; robust rules weigh all clients alike");
    if (rule == F::krum && federated_.group_size() > 1)
      Complain("federated.aggregation", "krum compares whole updates, expected group_size 1");
    const int64_t clients = federated_.clients_per_round() > 0 ? federated_.clients_per_round()
                                                               : federated_.num_clients();
    const int64_t needed = 2 * int64_t{federated_.num_byzantine()} + 3;
    if (rule == F::krum && clients > 0 && clients < needed) {
      Complain("federated.num_byzantine",
               absl::StrCat("got ", federated_.num_byzantine(), ", which takes at least ", needed,
                            " clients a round, expected at most ", (clients - 3) / 2));
    }
  }

  void Privacy() {
    const FederatedPrivacy& privacy = federated_.privacy();
    const bool on = privacy.clip_norm() > 0;
    for (const char* key : {"noise_multiplier", "target_epsilon", "adaptive_clip"}) {
      if (!on && recipe_.IsSet(absl::StrCat("federated.privacy.", key)))
        Complain(absl::StrCat("federated.privacy.", key), "needs clip_norm above 0");
    }
    Only(privacy.adaptive_clip(), "federated.privacy.clip_quantile", "adaptive_clip");
    Only(privacy.adaptive_clip(), "federated.privacy.clip_learning_rate", "adaptive_clip");
    if (!on) return;
    if (privacy.has_target_epsilon() && privacy.has_noise_multiplier())
      Complain("federated.privacy.target_epsilon", "given beside noise_multiplier");
    const auto beside = [&](bool bad, const std::string& key, const char* expected) {
      if (bad) Complain(key, absl::StrCat("under privacy, expected ", expected));
    };
    beside(federated_.weighting() != FederatedSection::equal,
           recipe_.IsSet("federated.weighting") ? "federated.weighting" : "federated.privacy",
           "weighting: equal, for which the noise is measured");
    beside(federated_.aggregation() != FederatedSection::mean, "federated.aggregation", "mean");
    beside(federated_.algorithm() == FederatedSection::scaffold, "federated.algorithm",
           "fedavg or fedprox: control variates would be sent without noise");
    beside(federated_.asynchronous().buffer_size() > 0, "federated.asynchronous",
           "rounds in step, which the accountant knows");
  }

  void Masks() {
    if (!federated_.secure_aggregation().enabled()) {
      Only(false, "federated.secure_aggregation.threshold", "secure_aggregation.enabled");
      Only(false, "federated.secure_aggregation.neighbours", "secure_aggregation.enabled");
      return;
    }
    const std::string key = "federated.secure_aggregation";
    if (federated_.aggregation() != FederatedSection::mean)
      Complain(key, "hides single updates, which robust rules compare, expected aggregation mean");
    if (federated_.algorithm() == FederatedSection::scaffold)
      Complain(key, "does not mask control variates, expected algorithm fedavg or fedprox");
    if (federated_.asynchronous().buffer_size() > 0)
      Complain(key, "takes clients of one round, expected no asynchronous.buffer_size");
  }

  void Clock() {
    const FederatedAsynchronous& clock = federated_.asynchronous();
    const std::string section = "federated.asynchronous";
    if (clock.buffer_size() == 0) {
      for (const char* key : {"concurrency", "staleness_exponent", "latency_sigma"})
        Only(false, absl::StrCat(section, ".", key), "rounds with a buffer_size");
      return;
    }
    if (clock.concurrency() < 1)
      Complain(section, "expected concurrency, the clients that are at work at a time");
    Only(false, "federated.clients_per_round", "rounds in step, expected asynchronous.buffer_size");
    Only(false, "federated.sampling", "rounds in step");
    if (federated_.algorithm() == FederatedSection::scaffold || federated_.keep_optimizer_state())
      Complain(section, "clients that remember train in step, expected no buffer_size");
  }

  const LoadedRecipe& recipe_;
  const FederatedSection& federated_;
  const ReportError& report_;
  bool reads_csv_ = false;
};

}  // namespace

void ValidateFederated(const LoadedRecipe& recipe, const ReportError& report) {
  if (recipe.proto.task() == federated) return FederatedValidator(recipe, report).Run();
  if (recipe.IsSet("federated")) report("federated", "is of task federated");
  const auto refuse = [&](const auto& sources, const char* list) {
    for (int i = 0; i < sources.size(); ++i) {
      if (sources[i].format() == DataSource::csv)
        report(absl::StrCat(list, ".", i), "format csv is of task federated");
    }
  };
  refuse(recipe.proto.data().train(), "data.train");
  refuse(recipe.proto.data().eval(), "data.eval");
}

}  // namespace shoal
