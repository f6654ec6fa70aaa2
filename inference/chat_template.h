// A conversation as the text that a model was trained to continue.
//
//   SHOAL_ASSIGN_OR_RETURN(ChatTemplate chat, LoadChatTemplate(files, folder));
//   SHOAL_ASSIGN_OR_RETURN(std::string text, chat.Render({{"user", "Hello"}}));
//   tokenizer.Encode(text, {.add_special_tokens = false});
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/status.h"
#include "inference/jinja_syntax.h"

namespace shoal {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  // `source`: Jinja, as in Hugging Face's chat_template (jinja_syntax.h says how much of it).
  // `variables` are its own: bos_token, eos_token. InvalidArgument: what cannot be read, with its
  // line.
  static absl::StatusOr<ChatTemplate> FromJinja(const std::string& source,
                                                std::map<std::string, std::string> variables = {});
  // `turn_start` with {role} replaced, the content, `turn_end`; then the assistant's turn_start.
  // InvalidArgument without {role}.
  static absl::StatusOr<ChatTemplate> Plain(const std::string& turn_start,
                                            const std::string& turn_end);

  // All messages, then the beginning of the assistant's next turn. InvalidArgument: what the
  // template raises, or does not know.
  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages) const;

 private:
  ChatTemplate() = default;

  std::shared_ptr<const std::vector<jinja::Statement>> program_;  // Null: plain
  std::map<std::string, std::string> variables_;
  std::string turn_start_, turn_end_;
};

// The template of a Hugging Face folder: chat_template.jinja, or tokenizer_config.json's
// chat_template (the one named "default" if there are several), with that file's special tokens.
// nullopt: there is none.
absl::StatusOr<std::optional<ChatTemplate>> LoadChatTemplate(FileSystem& files,
                                                             const std::string& directory);

}  // namespace shoal
