// The chat templates that serve knows. A model's own is recognised by its text, and never run.
#ifndef MINIMAMBA_EXAMPLES_SERVE_CHAT_HPP
#define MINIMAMBA_EXAMPLES_SERVE_CHAT_HPP

#include <minimamba/io.hpp>
#include <minimamba/text.hpp>

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
  inst,    // [INST] content[/INST] answer</s>: Mistral's, and Llama 2's with a space before [/INST]
  falcon,  // <|role|>\ncontent\n: Falcon 3's
};

/// Turns messages into text.
class ChatTemplate {
 public:
  ChatTemplate(ChatFormat format, std::string eos, std::string_view source = "")
      : format_(format),
        eos_(std::move(eos)),
        spaced_(source.find(" [/INST]") != source.npos),
        llama_(source.find("<<SYS>>") != source.npos),
        begins_with_bos_(source.find("bos_token") != source.npos) {}

  static std::optional<ChatFormat> named(std::string_view name) {
    if (name == "chatml") return ChatFormat::chatml;
    if (name == "inst") return ChatFormat::inst;
    if (name == "falcon") return ChatFormat::falcon;
    return std::nullopt;
  }
  static std::optional<ChatFormat> recognised(std::string_view source) {
    const auto has = [&](std::string_view text) { return source.find(text) != source.npos; };
    if (has("<|im_start|>") && has("<|im_end|>")) return ChatFormat::chatml;
    if (has("[INST]") && has("[/INST]")) return ChatFormat::inst;
    if (has("<|user|>") && has("<|assistant|>") && !has("<|end|>")) return ChatFormat::falcon;  // with <|end|>: Phi's
    return std::nullopt;
  }

  /// The text of the messages and of the beginning of the answer.
  std::string operator()(std::span<const Message> messages) const {
    std::string text, system;
    for (const Message& message : messages) {
      if (format_ == ChatFormat::inst) {
        add_inst(message, system, text);
      } else if (format_ == ChatFormat::chatml) {
        text += "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n";
      } else {
        text += "<|" + message.role + "|>\n" + message.content;
        text += message.role == "assistant" ? eos_ + "\n" : "\n";
      }
    }
    if (!system.empty()) throw ApiError(400, "the template needs a user's message after a system message", "messages");
    if (format_ == ChatFormat::inst && messages.back().role == "assistant") {
      throw ApiError(400, "the template needs a user's message at the end", "messages");
    }
    if (format_ == ChatFormat::chatml) text += "<|im_start|>assistant\n";
    if (format_ == ChatFormat::falcon) text += "<|assistant|>\n";
    return text;
  }

  /// What stands between an answer and the message after it, beginning with what ends the answer.
  std::string answer_end() const { return format_ == ChatFormat::chatml ? "<|im_end|>\n" : eos_ + after_eos(); }
  /// The text of the token that ends an answer.
  const std::string& end_token() const { return format_ == ChatFormat::chatml ? im_end : eos_; }
  bool begins_with_bos() const { return begins_with_bos_; }

 private:
  std::string after_eos() const { return format_ == ChatFormat::falcon ? "\n" : ""; }

  /// A system message stands within the user's message that follows it.
  void add_inst(const Message& message, std::string& system, std::string& text) const {
    if (message.role == "system") {
      system += llama_ ? "<<SYS>>\n" + message.content + "\n<</SYS>>\n\n" : message.content + "\n\n";
    } else if (message.role == "user") {
      text += "[INST] " + std::exchange(system, {}) + message.content + (spaced_ ? " [/INST]" : "[/INST]");
    } else {
      text += " " + message.content + eos_;
    }
  }

  inline static const std::string im_end = "<|im_end|>";

  ChatFormat format_;
  std::string eos_;
  bool spaced_, llama_, begins_with_bos_;
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

/// The source of a model's template, and the file that has it or should have it.
inline std::pair<std::optional<std::string>, std::string> find_template(const minimamba::Checkpoint& checkpoint) {
  const auto in_gguf = checkpoint.metadata.find("tokenizer.chat_template");
  if (in_gguf != checkpoint.metadata.end() && std::holds_alternative<std::string>(in_gguf->second)) {
    return {std::get<std::string>(in_gguf->second), checkpoint.weights_name};
  }
  if (!checkpoint.has_folder || checkpoint.format == minimamba::CheckpointFormat::gguf) {
    return {std::nullopt, checkpoint.weights_name};
  }
  const std::filesystem::path path = checkpoint.folder / "tokenizer_config.json",
                              jinja = checkpoint.folder / "chat_template.jinja";
  std::error_code error;
  if (std::filesystem::exists(jinja, error)) {
    const auto source = minimamba::ByteSource::open(jinja);
    std::string text(std::min<std::size_t>(static_cast<std::size_t>(source.size()), std::size_t{1} << 20), '\0');
    source.read(0, std::as_writable_bytes(std::span(text)));
    return {text, jinja.string()};
  }
  if (!std::filesystem::exists(path, error)) return {std::nullopt, path.string()};
  return {template_in(minimamba::read_json(minimamba::ByteSource::open(path))), path.string()};
}

}  // namespace detail

/// The template named `name`, or that of the model. Throws ArgumentError for an unknown name.
inline FoundTemplate find_chat_template(const std::string& name, const minimamba::Checkpoint& checkpoint,
                                        const minimamba::Tokenizer* tokenizer) {
  std::string eos;
  if (tokenizer != nullptr && checkpoint.config.eos_token_id)
    eos = tokenizer->bytes_of(*checkpoint.config.eos_token_id);
  const auto [source, file] = detail::find_template(checkpoint);
  if (!name.empty()) {
    const auto format = ChatTemplate::named(name);
    if (!format) throw minimamba::ArgumentError("--chat-template", "chatml, inst or falcon", name);
    return {ChatTemplate(*format, eos, source.value_or("")), ""};
  }
  if (!source) return {std::nullopt, file + " has no chat template; start serve with --chat-template to choose one"};
  const auto format = ChatTemplate::recognised(*source);
  if (!format) {
    return {std::nullopt, "the chat template of " + file +
                              " is not one that serve knows; start it with --chat-template to choose one"};
  }
  return {ChatTemplate(*format, eos, *source), ""};
}

}  // namespace serve

#endif
