// The chat templates that serve knows. A model's own is recognised by its text, and never run.
#ifndef MINIMAMBA_EXAMPLES_SERVE_CHAT_HPP
#define MINIMAMBA_EXAMPLES_SERVE_CHAT_HPP

#include <minimamba/io.hpp>
#include <minimamba/text.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "serve_api.hpp"

namespace serve {

enum class ChatFormat {
  chatml,  // <|im_start|>role\ncontent<|im_end|>\n
  inst,    // [INST] content[/INST] answer</s>: Mistral's, and Llama 2's
  falcon,  // <|role|>\ncontent\n: Falcon 3's
};

namespace detail {

/// Writes variable.name and variable['name'] as ['name'].
inline void without_variables(std::string& text, const std::string& name) {
  const std::string plain = "['" + name + "']";
  const auto is_letter = [](char x) { return std::isalnum(static_cast<unsigned char>(x)) != 0 || x == '_'; };
  for (const std::string& form : {"." + name, plain}) {
    std::string result;
    std::size_t done = 0;  // of the text
    for (std::size_t at = 0; (at = text.find(form, at)) != text.npos; at += form.size()) {
      std::size_t begin = at;
      while (begin > done && is_letter(text[begin - 1])) --begin;
      if (begin == at) continue;
      result.append(text, done, begin - done).append(plain);
      done = at + form.size();
    }
    text = result.append(text, done);
  }
}

/// The source of a template in one way of writing: within {{ }} and {% %}, without spaces, with ' as quotes, \n for
/// line breaks in them, and ['role'] for message['role'], m.role and the like.
inline std::string normalised(std::string_view source) {
  std::string text;
  char quote = 0;
  bool in_tag = false;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const char x = source[i];
    const std::string_view two = source.substr(i, 2);
    if (quote != 0) {
      text += x == '\n' ? "\\n" : x == quote ? "'" : std::string(1, x);
      if (x == '\\' && i + 1 < source.size()) text += source[++i];
      if (x == quote) quote = 0;
    } else if (!in_tag) {
      in_tag = two == "{{" || two == "{%";
      text += in_tag ? two : source.substr(i, 1);
      i += in_tag ? 1 : 0;
      if (in_tag && source.substr(i + 1, 1) == "-") ++i;
    } else if (two == "}}" || two == "%}") {
      in_tag = false;
      if (text.ends_with('-')) text.pop_back();
      text += two;
      ++i;
    } else if (x == '"' || x == '\'') {
      quote = x;
      text += '\'';
    } else if (x != ' ' && x != '\n' && x != '\t' && x != '\r') {
      text += x;
    }
  }
  without_variables(text, "role");
  without_variables(text, "content");
  return text;
}

}  // namespace detail

/// The tokens that templates name.
struct ChatTokens {
  std::string eos, bos;
};

/// Turns messages into text, as the template with this source does: what differs among templates of one format is
/// looked up there. Without a source, it is the format's most common one.
class ChatTemplate {
 public:
  ChatTemplate(ChatFormat format, ChatTokens tokens, std::string_view source = "")
      : format_(format), tokens_(std::move(tokens)), has_source_(!source.empty()) {
    const std::string text = detail::normalised(source);
    const auto has = [&](std::string_view part) { return text.find(part) != text.npos; };
    const bool own = has_source_;
    begins_with_bos_ = has("bos_token");
    bos_each_turn_ = has("bos_token+'[INST]");
    before_inst_ = has("' [INST]") ? " " : "";
    after_inst_ = own && !has("[INST] ") ? "" : " ";
    before_end_ = has(" [/INST]") ? " " : "";
    before_answer_ = own && !has("' '+['content']") && !has("' '+content") ? "" : " ";
    before_eos_ = has("+' '+eos_token") ? " " : "";
    after_eos_ = format == ChatFormat::falcon ? "\n" : has("eos_token+' '") ? " " : "";
    trims_ = has("['content']|trim") || has("content.strip()") || has("['content'].strip()");
    trims_user_ = has("content.strip()+' [/INST]'");
    llama_ = has("<<SYS>>");
    system_is_last_ = has("loop.lastandsystem_message");
    takes_system_ = !own || format != ChatFormat::inst || has("'system'");
    alternates_ = has("alternate");
    default_system_ = default_system(text);
  }

  static std::optional<ChatFormat> named(std::string_view name) {
    if (name == "chatml") return ChatFormat::chatml;
    if (name == "inst") return ChatFormat::inst;
    if (name == "falcon") return ChatFormat::falcon;
    return std::nullopt;
  }
  static std::optional<ChatFormat> recognised(std::string_view source) {
    const std::string text = detail::normalised(source);
    const auto has = [&](std::string_view part) { return text.find(part) != text.npos; };
    const bool opens =
        has("'<|im_start|>'+['role']+'\\n'") || has("<|im_start|>user\\n") || has("<|im_start|>{{['role']}}\n");
    if (opens && has("<|im_end|>")) return ChatFormat::chatml;
    if (has("[INST]") && has("[/INST]") && !has("[SYSTEM_PROMPT]")) return ChatFormat::inst;
    const bool user = has("'<|user|>\\n'+['content']+'\\n'"), answer = has("'<|assistant|>\\n'+['content']+eos_token");
    if (user && answer && !text.starts_with("{{eos_token}}")) return ChatFormat::falcon;
    return std::nullopt;
  }

  /// The text of the messages and of the beginning of the answer, without the token that begins all texts.
  std::string operator()(std::span<const Message> messages) const {
    if (format_ == ChatFormat::inst) return inst(messages);
    std::string text;
    if (!default_system_.empty() && messages.front().role != "system") {
      text += "<|im_start|>system\n" + default_system_ + "<|im_end|>\n";
    }
    for (const Message& message : messages) {
      if (format_ == ChatFormat::chatml) {
        text += "<|im_start|>" + message.role + "\n" + trimmed(message.content, trims_) + "<|im_end|>\n";
      } else if (message.role == "assistant") {
        text += "<|assistant|>\n" + message.content + tokens_.eos + (&message == &messages.back() ? "" : "\n");
      } else {
        text += "<|" + message.role + "|>\n" + message.content + "\n";
      }
    }
    return text + (format_ == ChatFormat::chatml ? "<|im_start|>assistant\n" : "<|assistant|>\n");
  }

  /// What stands between an answer and the message after it; `ended`: the token that ends an answer is there already.
  std::string answer_end(bool ended) const {
    if (format_ == ChatFormat::chatml) return ended ? "\n" : "<|im_end|>\n";
    return ended ? after_eos_ : before_eos_ + tokens_.eos + after_eos_;
  }
  /// The text of the token that ends an answer.
  const std::string& end_token() const { return format_ == ChatFormat::chatml ? im_end : tokens_.eos; }
  bool begins_with_bos() const { return begins_with_bos_; }
  /// Whether it is a model's own, which says itself what all texts begin with.
  bool is_own() const { return has_source_; }

 private:
  /// The system message that a template of ChatML has for chats without one.
  static std::string default_system(const std::string& source) {
    constexpr std::string_view begin = "<|im_start|>system\\n", end = "<|im_end|>";
    for (std::size_t from = 0, stop; (stop = source.find(end, from)) != source.npos; from = stop + end.size()) {
      const std::string_view before = std::string_view(source).substr(from, stop - from);
      const std::size_t at = before.rfind(begin);
      if (at == before.npos) continue;
      const std::string_view quoted = before.substr(at + begin.size());
      const auto has = [&](std::string_view part) { return quoted.find(part) != quoted.npos; };
      if (has("'+") || has("}}") || has("{{")) continue;
      std::string text;
      for (std::size_t i = 0; i < quoted.size(); ++i) {
        if (quoted[i] != '\\') {
          text += quoted[i];
        } else if (++i < quoted.size()) {
          text += quoted[i] == 'n' ? '\n' : quoted[i];
        }
      }
      return text;
    }
    return "";
  }
  static std::string trimmed(const std::string& text, bool trims) {
    constexpr const char* spaces = " \t\n\v\f\r";
    const std::size_t first = trims ? text.find_first_not_of(spaces) : 0;
    if (first == text.npos) return "";
    return trims ? text.substr(first, text.find_last_not_of(spaces) - first + 1) : text;
  }

  /// A system message stands within a user's message: the next one, or the last one.
  std::string inst(std::span<const Message> messages) const {
    check_roles(messages);
    std::string text, system;
    for (const Message& message : messages) {
      if (message.role == "system") {
        system += llama_ ? "<<SYS>>\n" + message.content + "\n<</SYS>>\n\n" : message.content + "\n\n";
      } else if (message.role == "user") {
        const bool last = &message == &messages.back();
        const std::string before = system_is_last_ && !last ? "" : std::exchange(system, {});
        if (bos_each_turn_ && !text.empty()) text += tokens_.bos;
        text += before_inst_ + "[INST]" + after_inst_ + trimmed(before + message.content, trims_user_);
        text += before_end_ + "[/INST]";
      } else {
        text += before_answer_ + trimmed(message.content, trims_) + before_eos_ + tokens_.eos + after_eos_;
      }
    }
    return text;
  }
  void check_roles(std::span<const Message> messages) const {
    if (messages.back().role != "user")
      throw ApiError(400, "the template needs a user's message at the end", "messages");
    std::string before;
    for (const Message& message : messages) {
      const bool system = message.role == "system", first = &message == &messages.front();
      if (system && !takes_system_) throw ApiError(400, "the template has no system messages", "messages");
      if (alternates_ && (message.role == before || (system && !first))) {
        throw ApiError(400, "the template needs messages of user and assistant in turn", "messages");
      }
      before = message.role;
    }
  }

  inline static const std::string im_end = "<|im_end|>";

  ChatFormat format_;
  ChatTokens tokens_;
  bool has_source_;
  bool begins_with_bos_, bos_each_turn_, trims_, trims_user_, llama_, system_is_last_, takes_system_, alternates_;
  std::string before_inst_, after_inst_, before_end_, before_answer_, before_eos_, after_eos_;
  std::string default_system_;
};

/// The template of a model, or why it has none.
struct FoundTemplate {
  std::optional<ChatTemplate> chat;
  std::string problem;  // names the file
};

namespace detail {

/// The text of a template in tokenizer_config.json: a string, or a list of which that named "default" counts.
inline std::optional<std::string> template_in(const Json& settings) {
  const Json* const found = settings.find("chat_template");
  if (found == nullptr) return std::nullopt;
  if (found->text() != nullptr) return *found->text();
  if (found->array() == nullptr) return std::nullopt;
  for (const Json& one : *found->array()) {
    const Json *const name = one.find("name"), *const text = one.find("template");
    if (name != nullptr && name->is("default") && text != nullptr && text->text() != nullptr) return *text->text();
  }
  return std::nullopt;
}

/// A special token in tokenizer_config.json: a text, or an object that has it.
inline std::string token_in(const Json& settings, std::string_view name) {
  const Json* found = settings.find(name);
  if (found != nullptr && found->object() != nullptr) found = found->find("content");
  return found != nullptr && found->text() != nullptr ? *found->text() : "";
}

/// What a checkpoint says about chats.
struct ChatSettings {
  std::optional<std::string> source;  // of the template
  std::string file;                   // that has it, or should have it
  ChatTokens tokens;
};

/// Reads tokenizer_config.json. Throws what read_json throws.
inline ChatSettings read_chat_settings(const minimamba::ByteSource& source) {
  const Json json = minimamba::read_json(source);
  return {template_in(json), source.name(), {token_in(json, "eos_token"), token_in(json, "bos_token")}};
}

inline ChatSettings chat_settings(const minimamba::Checkpoint& checkpoint) {
  const auto in_gguf = checkpoint.metadata.find("tokenizer.chat_template");
  if (in_gguf != checkpoint.metadata.end() && std::holds_alternative<std::string>(in_gguf->second)) {
    return {std::get<std::string>(in_gguf->second), checkpoint.weights_name, {}};
  }
  if (!checkpoint.has_folder || checkpoint.format == minimamba::CheckpointFormat::gguf) {
    return {std::nullopt, checkpoint.weights_name, {}};
  }
  const std::filesystem::path path = checkpoint.folder / "tokenizer_config.json",
                              jinja = checkpoint.folder / "chat_template.jinja";
  ChatSettings settings{std::nullopt, path.string(), {}};
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    settings = read_chat_settings(minimamba::ByteSource::open(path));
  }
  if (std::filesystem::exists(jinja, error)) {
    const auto source = minimamba::ByteSource::open(jinja);
    std::string text(std::min<std::size_t>(static_cast<std::size_t>(source.size()), std::size_t{1} << 20), '\0');
    source.read(0, std::as_writable_bytes(std::span(text)));
    settings.source = std::move(text);
    settings.file = jinja.string();
  }
  return settings;
}

}  // namespace detail

/// The template named `name`, or that of the model. Throws ArgumentError for an unknown name.
inline FoundTemplate find_chat_template(const std::string& name, const minimamba::Checkpoint& checkpoint,
                                        const minimamba::Tokenizer* tokenizer) {
  auto [source, file, tokens] = detail::chat_settings(checkpoint);
  const auto add = [&](std::string& text, std::optional<std::int32_t> id) {
    if (tokenizer != nullptr && text.empty() && id) text = tokenizer->bytes_of(*id);
  };
  add(tokens.eos, checkpoint.config.eos_token_id);
  add(tokens.bos, checkpoint.config.bos_token_id);
  if (!name.empty()) {
    const auto format = ChatTemplate::named(name);
    if (!format) throw minimamba::ArgumentError("--chat-template", "chatml, inst or falcon", name);
    const bool own = source && ChatTemplate::recognised(*source) == format;
    return {ChatTemplate(*format, tokens, own ? *source : ""), ""};
  }
  if (!source) return {std::nullopt, file + " has no chat template; start serve with --chat-template to choose one"};
  const auto format = ChatTemplate::recognised(*source);
  if (!format) {
    return {std::nullopt, "the chat template of " + file +
                              " is not one that serve knows; start it with --chat-template to choose one"};
  }
  return {ChatTemplate(*format, tokens, *source), ""};
}

}  // namespace serve

#endif
