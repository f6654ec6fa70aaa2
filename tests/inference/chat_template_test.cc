#include "inference/chat_template.h"

#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/memory_file_system.h"

namespace shoal {
namespace {

using testing::HasSubstr;

const std::map<std::string, std::string> kTokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};

std::string Refusal(const std::string& source) {
  const auto chat = ChatTemplate::FromJinja(source);
  if (!chat.ok()) return std::string(chat.status().message());
  return std::string(chat->Render({{"user", "x"}}).status().message());
}

// Texts of Python's jinja2 in transformers' environment (tests/fixtures/make_chat_fixtures.py).
TEST(ChatTemplate, EqualsTransformers) {
  std::ifstream file("tests/fixtures/chat_templates.json");
  ASSERT_TRUE(file.is_open());
  for (const auto& entry : nlohmann::json::parse(file)) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const auto chat = ChatTemplate::FromJinja(entry["template"].get<std::string>(), kTokens);
    ASSERT_TRUE(chat.ok()) << chat.status();
    std::vector<ChatMessage> messages;
    for (const auto& message : entry["messages"])
      messages.push_back(
          {message["role"].get<std::string>(), message["content"].get<std::string>()});
    const auto text = chat->Render(messages);
    if (entry.contains("error")) {
      EXPECT_THAT(std::string(text.status().message()),
                  HasSubstr(entry["error"].get<std::string>()));
    } else {
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, entry["text"].get<std::string>());
    }
  }
}

TEST(ChatTemplate, RefusesWhatItDoesNotKnowByNameAndLine) {
  EXPECT_THAT(Refusal("a\n{% macro f(x) %}"), HasSubstr("line 2: {% macro %} is not supported"));
  EXPECT_THAT(Refusal("{{ messages | map }}"),
              HasSubstr("line 1: the filter map is not supported"));
  EXPECT_THAT(Refusal("\n\n{{ strftime_now('%d') }}"),
              HasSubstr("line 3: the function strftime_now is not supported"));
  EXPECT_THAT(Refusal("{{ messages is callable }}"), HasSubstr("the test callable"));
  EXPECT_THAT(Refusal("{% for m in messages %}"), HasSubstr("lacks its {% endfor %}"));
  EXPECT_THAT(Refusal("{{ 'open }}"), HasSubstr("is not closed"));
  EXPECT_THAT(Refusal("{{ messages[0]. }}"), HasSubstr("expected a name"));
  EXPECT_THAT(Refusal("{{ nobody.name }}"), HasSubstr("nothing has no name"));
  EXPECT_THAT(Refusal("{{ messages }}"), HasSubstr("cannot be printed"));
  EXPECT_THAT(Refusal("{{ 1 // 0 }}"), HasSubstr("division by zero"));
}

// Bytes of a stranger's file: an error or a text, never more.
TEST(ChatTemplate, NoTruncationOrChangeCrashesIt) {
  std::ifstream file("tests/fixtures/chat_templates.json");
  ASSERT_TRUE(file.is_open());
  for (const auto& entry : nlohmann::json::parse(file)) {
    const std::string source = entry["template"];
    for (size_t i = 0; i < source.size(); i += 3) {
      Refusal(source.substr(0, i));
      std::string changed = source;
      changed[i] = "{}%'(|-"[i % 7];
      Refusal(changed);
    }
  }
}

TEST(ChatTemplate, PlainTurns) {
  const auto chat = ChatTemplate::Plain("<{role}>", "</s>\n");
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(*chat->Render({{"system", "a"}, {"user", "b"}}),
            "<system>a</s>\n<user>b</s>\n<assistant>");
  EXPECT_THAT(std::string(ChatTemplate::Plain("x", "").status().message()), HasSubstr("{role}"));
}

TEST(LoadChatTemplate, FindsItWhereHuggingFacePutsIt) {
  MemoryFileSystem files;
  const auto write = [&](const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomically(files, "m/" + name, text).ok());
  };
  ASSERT_TRUE(files.CreateDirectory("m").ok());
  EXPECT_FALSE((*LoadChatTemplate(files, "m")).has_value());
  write("tokenizer_config.json",
        R"({"eos_token": {"content": "</s>"}, "chat_template": "A{{ eos_token }}"})");
  EXPECT_EQ(*(**LoadChatTemplate(files, "m")).Render({}), "A</s>");
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "T"},
                              {"name": "default", "template": "D"}]})");
  EXPECT_EQ(*(**LoadChatTemplate(files, "m")).Render({}), "D");
  write("chat_template.jinja", "F");
  EXPECT_EQ(*(**LoadChatTemplate(files, "m")).Render({}), "F");
}

}  // namespace
}  // namespace shoal
