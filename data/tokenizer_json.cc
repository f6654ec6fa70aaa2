#include "data/tokenizer_json.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/byte_level.h"
#include "data/split_pattern.h"
#include "data/unicode.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> ParseJson(const std::string& text) {
  try {
    Json json = Json::parse(text);
    if (!json.is_object()) return absl::InvalidArgumentError("expected a JSON object");
    return json;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

// The value at `key`, or null if it is missing or JSON's null.
const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::Status WrongType(absl::string_view path, absl::string_view expected, const Json& got) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": expected ", expected, ", got ", got.type_name()));
}

absl::StatusOr<bool> GetBool(const Json& object, const char* key, bool fallback,
                             absl::string_view path) {
  const Json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(absl::StrCat(path, ".", key), "true or false", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> GetString(const Json& object, const char* key, absl::string_view path) {
  const Json* value = Find(object, key);
  if (value == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(path, ".", key, " is missing"));
  if (!value->is_string()) return WrongType(absl::StrCat(path, ".", key), "a string", *value);
  return value->get<std::string>();
}

absl::StatusOr<int32_t> ToId(const Json& value, absl::string_view path) {
  if (!value.is_number_integer()) return WrongType(path, "a token id", value);
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= BpeModel::kMaxId
                                               : value.get<int64_t>() >= 0;
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": token id ", value.dump(), ", expected 0 to ", BpeModel::kMaxId));
  }
  return value.get<int32_t>();
}

// The "type" of a part of the file.
absl::StatusOr<std::string> TypeOf(const Json& part, absl::string_view path) {
  if (!part.is_object()) return WrongType(path, "an object", part);
  return GetString(part, "type", path);
}

absl::Status Unsupported(absl::string_view path, absl::string_view type,
                         absl::string_view supported) {
  return absl::UnimplementedError(
      absl::StrCat(path, ": type ", type, " is not supported, only ", supported));
}

constexpr int kMaxDepth = 16;

// The parts of a Sequence under `key`, or the part itself.
absl::StatusOr<std::vector<const Json*>> Flatten(const Json& part, const char* key,
                                                 const std::string& path, int depth = 0) {
  SHOAL_ASSIGN_OR_RETURN(const std::string type, TypeOf(part, path));
  if (type != "Sequence") return std::vector<const Json*>{&part};
  if (depth >= kMaxDepth)
    return absl::InvalidArgumentError(absl::StrCat(path, ": Sequences nested deeper than 16"));
  const Json* entries = Find(part, key);
  if (entries == nullptr || !entries->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".", key, ": expected a list"));
  }
  std::vector<const Json*> parts;
  for (const Json& entry : *entries) {
    SHOAL_ASSIGN_OR_RETURN(const auto inner, Flatten(entry, key, path, depth + 1));
    parts.insert(parts.end(), inner.begin(), inner.end());
  }
  return parts;
}

absl::Status ParseVocab(const Json& model, BpeDefinition& out) {
  const Json* vocab = Find(model, "vocab");
  if (vocab == nullptr || !vocab->is_object())
    return absl::InvalidArgumentError("model.vocab: expected an object");
  out.vocab.reserve(vocab->size());
  for (const auto& [token, id] : vocab->items()) {
    SHOAL_ASSIGN_OR_RETURN(const int32_t value, ToId(id, absl::StrCat("model.vocab.", token)));
    out.vocab.emplace_back(token, value);
  }
  return absl::OkStatus();
}

// "a b" or ["a", "b"].
absl::Status ParseMerges(const Json& model, BpeDefinition& out) {
  const Json* merges = Find(model, "merges");
  if (merges == nullptr || !merges->is_array())
    return absl::InvalidArgumentError("model.merges: expected a list");
  out.merges.reserve(merges->size());
  for (const Json& merge : *merges) {
    const auto wrong = [&] {
      return absl::InvalidArgumentError(
          absl::StrCat("model.merges entry ", out.merges.size(),
                       ": expected \"left right\" or [\"left\", \"right\"]"));
    };
    if (merge.is_string()) {
      const std::string text = merge.get<std::string>();
      if (text.rfind("#version", 0) == 0) continue;
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
        return wrong();
      out.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      out.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      return wrong();
    }
  }
  return absl::OkStatus();
}

absl::Status ParseModel(const Json& root, BpeDefinition& out) {
  const Json* model = Find(root, "model");
  if (model == nullptr) return absl::InvalidArgumentError("model is missing");
  if (Find(*model, "type") != nullptr ||
      Find(*model, "merges") == nullptr) {  // Old files leave "type" out
    SHOAL_ASSIGN_OR_RETURN(const std::string type, TypeOf(*model, "model"));
    if (type != "BPE") return Unsupported("model", type, "BPE");
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = Find(*model, affix);
    if (value != nullptr && *value != "") {
      return absl::UnimplementedError(
          absl::StrCat("model.", affix, " is not supported: byte-level BPE has none"));
    }
  }
  if (const Json* dropout = Find(*model, "dropout"); dropout != nullptr && *dropout != 0.0) {
    return absl::UnimplementedError("model.dropout is not supported: ids would be random");
  }
  if (Find(*model, "unk_token") != nullptr) {
    SHOAL_ASSIGN_OR_RETURN(out.unk_token, GetString(*model, "unk_token", "model"));
  }
  SHOAL_ASSIGN_OR_RETURN(out.fuse_unk, GetBool(*model, "fuse_unk", false, "model"));
  SHOAL_ASSIGN_OR_RETURN(out.byte_fallback, GetBool(*model, "byte_fallback", false, "model"));
  SHOAL_ASSIGN_OR_RETURN(out.ignore_merges, GetBool(*model, "ignore_merges", false, "model"));
  SHOAL_RETURN_IF_ERROR(ParseVocab(*model, out));
  return ParseMerges(*model, out);
}

absl::StatusOr<Normalizer> ParseNormalizer(const Json& root) {
  const Json* normalizer = Find(root, "normalizer");
  if (normalizer == nullptr) return Normalizer();
  SHOAL_ASSIGN_OR_RETURN(const auto parts, Flatten(*normalizer, "normalizers", "normalizer"));
  std::vector<NormalForm> forms;
  for (const Json* part : parts) {
    SHOAL_ASSIGN_OR_RETURN(const std::string type, TypeOf(*part, "normalizer"));
    if (type == "NFC")
      forms.push_back(NormalForm::kNfc);
    else if (type == "NFD")
      forms.push_back(NormalForm::kNfd);
    else if (type == "NFKC")
      forms.push_back(NormalForm::kNfkc);
    else if (type == "NFKD")
      forms.push_back(NormalForm::kNfkd);
    else
      return Unsupported("normalizer", type, "NFC, NFD, NFKC, NFKD and a Sequence of them");
  }
  return Normalizer(std::move(forms));
}

absl::StatusOr<SplitBehavior> ParseBehavior(const Json& split) {
  SHOAL_ASSIGN_OR_RETURN(const std::string name, GetString(split, "behavior", "pre_tokenizer"));
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return absl::InvalidArgumentError(absl::StrCat("pre_tokenizer.behavior: unknown \"", name, "\""));
}

absl::StatusOr<SplitStage> ParseSplit(const Json& part) {
  SplitStage stage;
  SHOAL_ASSIGN_OR_RETURN(stage.behavior, ParseBehavior(part));
  SHOAL_ASSIGN_OR_RETURN(stage.invert, GetBool(part, "invert", false, "pre_tokenizer"));
  const Json* pattern = Find(part, "pattern");
  if (pattern == nullptr) return absl::InvalidArgumentError("pre_tokenizer.pattern is missing");
  if (Find(*pattern, "String") != nullptr) {
    SHOAL_ASSIGN_OR_RETURN(std::string literal,
                           GetString(*pattern, "String", "pre_tokenizer.pattern"));
    if (literal.empty()) return absl::InvalidArgumentError("pre_tokenizer.pattern.String is empty");
    stage.pattern = LiteralPattern(std::move(literal));
    return stage;
  }
  SHOAL_ASSIGN_OR_RETURN(const std::string regex,
                         GetString(*pattern, "Regex", "pre_tokenizer.pattern"));
  auto compiled = CompilePattern(regex);
  if (!compiled.ok()) return Annotate(compiled.status(), "pre_tokenizer.pattern.Regex");
  stage.pattern = *std::move(compiled);
  return stage;
}

absl::StatusOr<SplitStage> ParseByteLevel(const Json& part) {
  SplitStage stage;
  SHOAL_ASSIGN_OR_RETURN(stage.prefix_space,
                         GetBool(part, "add_prefix_space", true, "pre_tokenizer"));
  SHOAL_ASSIGN_OR_RETURN(const bool use_regex, GetBool(part, "use_regex", true, "pre_tokenizer"));
  if (use_regex) {
    SHOAL_ASSIGN_OR_RETURN(stage.pattern, CompilePattern(kGpt2Pattern));
  }
  return stage;
}

absl::StatusOr<SplitStage> ParseDigits(const Json& part) {
  SHOAL_ASSIGN_OR_RETURN(const bool individual,
                         GetBool(part, "individual_digits", false, "pre_tokenizer"));
  return SplitStage{.pattern = NumberPattern(),
                    .behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous};
}

absl::StatusOr<std::vector<SplitStage>> ParsePreTokenizer(const Json& root) {
  const Json* pre_tokenizer = Find(root, "pre_tokenizer");
  if (pre_tokenizer == nullptr) {
    return absl::UnimplementedError(
        "pre_tokenizer: there is none, only vocabularies of ByteLevel are supported");
  }
  SHOAL_ASSIGN_OR_RETURN(const auto parts,
                         Flatten(*pre_tokenizer, "pretokenizers", "pre_tokenizer"));
  std::vector<SplitStage> stages;
  bool byte_level = false;
  for (const Json* part : parts) {
    if (byte_level) return absl::UnimplementedError("pre_tokenizer: nothing may follow ByteLevel");
    SHOAL_ASSIGN_OR_RETURN(const std::string type, TypeOf(*part, "pre_tokenizer"));
    byte_level = type == "ByteLevel";
    auto stage =
        type == "Split"    ? ParseSplit(*part)
        : type == "Digits" ? ParseDigits(*part)
        : type == "ByteLevel"
            ? ParseByteLevel(*part)
            : absl::StatusOr<SplitStage>(Unsupported(
                  "pre_tokenizer", type, "ByteLevel, Split, Digits and a Sequence of them"));
    if (!stage.ok()) return stage.status();
    stages.push_back(*std::move(stage));
  }
  if (!byte_level) return absl::UnimplementedError("pre_tokenizer: it does not end in ByteLevel");
  return stages;
}

absl::StatusOr<AddedToken> ParseAddedToken(const Json& entry, const std::string& path) {
  AddedToken token;
  SHOAL_ASSIGN_OR_RETURN(token.content, GetString(entry, "content", path));
  const Json* id = Find(entry, "id");
  if (id == nullptr) return absl::InvalidArgumentError(absl::StrCat(path, ".id is missing"));
  SHOAL_ASSIGN_OR_RETURN(token.id, ToId(*id, path + ".id"));
  SHOAL_ASSIGN_OR_RETURN(token.special, GetBool(entry, "special", false, path));
  SHOAL_ASSIGN_OR_RETURN(token.single_word, GetBool(entry, "single_word", false, path));
  SHOAL_ASSIGN_OR_RETURN(token.lstrip, GetBool(entry, "lstrip", false, path));
  SHOAL_ASSIGN_OR_RETURN(token.rstrip, GetBool(entry, "rstrip", false, path));
  SHOAL_ASSIGN_OR_RETURN(token.normalized, GetBool(entry, "normalized", !token.special, path));
  return token;
}

absl::Status ParseAddedTokens(const Json& root, std::vector<AddedToken>& out) {
  const Json* tokens = Find(root, "added_tokens");
  if (tokens == nullptr) return absl::OkStatus();
  if (!tokens->is_array()) return WrongType("added_tokens", "a list", *tokens);
  for (const Json& entry : *tokens) {
    SHOAL_ASSIGN_OR_RETURN(AddedToken token,
                           ParseAddedToken(entry, absl::StrCat("added_tokens entry ", out.size())));
    out.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// One piece of a TemplateProcessing: a special token's ids, or the text (nullopt).
absl::StatusOr<std::optional<std::vector<int32_t>>> ParseTemplatePiece(const Json& piece,
                                                                       const Json& processor) {
  const std::string path = "post_processor.single";
  if (const Json* sequence = Find(piece, "Sequence")) {
    SHOAL_ASSIGN_OR_RETURN(const std::string id, GetString(*sequence, "id", path));
    if (id != "A")
      return absl::InvalidArgumentError(absl::StrCat(path, ": sequence ", id, ", expected A"));
    return std::optional<std::vector<int32_t>>();
  }
  const Json* special = Find(piece, "SpecialToken");
  if (special == nullptr)
    return absl::InvalidArgumentError(path + ": expected SpecialToken or Sequence");
  SHOAL_ASSIGN_OR_RETURN(const std::string name, GetString(*special, "id", path));
  const Json* known = Find(processor, "special_tokens");
  const Json* token = known == nullptr ? nullptr : Find(*known, name.c_str());
  const Json* ids = token == nullptr ? nullptr : Find(*token, "ids");
  if (ids == nullptr || !ids->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("post_processor.special_tokens has no ids of \"", name, "\""));
  }
  std::vector<int32_t> out;
  for (const Json& id : *ids) {
    SHOAL_ASSIGN_OR_RETURN(const int32_t value, ToId(id, "post_processor.special_tokens"));
    out.push_back(value);
  }
  return std::optional<std::vector<int32_t>>(std::move(out));
}

absl::Status ParseTemplate(const Json& processor, TokenizerDefinition& out) {
  const Json* single = Find(processor, "single");
  if (single == nullptr || !single->is_array())
    return absl::InvalidArgumentError("post_processor.single: expected a list");
  std::vector<int32_t> before, after;
  bool seen_text = false;
  for (const Json& piece : *single) {
    SHOAL_ASSIGN_OR_RETURN(const auto ids, ParseTemplatePiece(piece, processor));
    if (!ids) {
      if (seen_text) return absl::UnimplementedError("post_processor.single names the text twice");
      seen_text = true;
      continue;
    }
    std::vector<int32_t>& side = seen_text ? after : before;
    side.insert(side.end(), ids->begin(), ids->end());
  }
  if (!seen_text) return absl::UnimplementedError("post_processor.single leaves the text out");
  out.prefix_ids.insert(out.prefix_ids.begin(), before.begin(), before.end());
  out.suffix_ids.insert(out.suffix_ids.end(), after.begin(), after.end());
  return absl::OkStatus();
}

// "cls" or "sep": ["</s>", 2].
absl::StatusOr<int32_t> ParseBorderToken(const Json& processor, const char* key) {
  const Json* pair = Find(processor, key);
  if (pair == nullptr || !pair->is_array() || pair->size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("post_processor.", key, ": expected [token, id]"));
  }
  return ToId((*pair)[1], absl::StrCat("post_processor.", key));
}

absl::Status ParsePostProcessor(const Json& root, TokenizerDefinition& out) {
  const Json* post_processor = Find(root, "post_processor");
  if (post_processor == nullptr) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(const auto parts,
                         Flatten(*post_processor, "processors", "post_processor"));
  for (const Json* part : parts) {
    SHOAL_ASSIGN_OR_RETURN(const std::string type, TypeOf(*part, "post_processor"));
    if (type == "ByteLevel") continue;  // Trims offsets only
    if (type == "TemplateProcessing") {
      SHOAL_RETURN_IF_ERROR(ParseTemplate(*part, out));
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      SHOAL_ASSIGN_OR_RETURN(const int32_t cls, ParseBorderToken(*part, "cls"));
      SHOAL_ASSIGN_OR_RETURN(const int32_t sep, ParseBorderToken(*part, "sep"));
      out.prefix_ids.insert(out.prefix_ids.begin(), cls);
      out.suffix_ids.push_back(sep);
    } else {
      return Unsupported("post_processor", type,
                         "ByteLevel, TemplateProcessing, RobertaProcessing, BertProcessing and a "
                         "Sequence of them");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDecoder(const Json& root) {
  const Json* decoder = Find(root, "decoder");
  if (decoder == nullptr) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(const auto parts, Flatten(*decoder, "decoders", "decoder"));
  if (parts.size() != 1)
    return absl::UnimplementedError("decoder: a Sequence of several is not supported");
  SHOAL_ASSIGN_OR_RETURN(const std::string type, TypeOf(*parts[0], "decoder"));
  return type == "ByteLevel" ? absl::OkStatus() : Unsupported("decoder", type, "ByteLevel");
}

}  // namespace

absl::StatusOr<TokenizerDefinition> ParseTokenizerJson(const std::string& json) {
  SHOAL_ASSIGN_OR_RETURN(const Json root, ParseJson(json));
  if (const Json* version = Find(root, "version"); version != nullptr && *version != "1.0") {
    return absl::UnimplementedError(
        absl::StrCat("version ", version->dump(), " is not supported, only \"1.0\""));
  }
  TokenizerDefinition definition;
  // The cheap parts that say what family this is come first, so that a refusal names the cause.
  SHOAL_RETURN_IF_ERROR(ParseModel(root, definition.model));
  SHOAL_ASSIGN_OR_RETURN(definition.pre_tokenizer, ParsePreTokenizer(root));
  SHOAL_ASSIGN_OR_RETURN(definition.normalizer, ParseNormalizer(root));
  SHOAL_RETURN_IF_ERROR(ParsePostProcessor(root, definition));
  SHOAL_RETURN_IF_ERROR(CheckDecoder(root));
  SHOAL_RETURN_IF_ERROR(ParseAddedTokens(root, definition.added_tokens));
  return definition;
}

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(const std::string& json) {
  SHOAL_ASSIGN_OR_RETURN(const Json root, ParseJson(json));
  // A name is a string, or an object (an AddedToken) with its content.
  const auto name = [&](const char* key) -> std::optional<std::string> {
    const Json* value = Find(root, key);
    if (value != nullptr && value->is_object()) value = Find(*value, "content");
    if (value == nullptr || !value->is_string()) return std::nullopt;
    return value->get<std::string>();
  };
  return TokenizerConfig{name("eos_token"), name("bos_token"), name("pad_token")};
}

}  // namespace shoal
