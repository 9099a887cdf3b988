// examples/serve_chat.hpp: what it reads of templates that strangers wrote. The prompts that real templates give are
// tested in programs/serve_templates.py.
#include <ctime>
#include <string>
#include <vector>

#include "examples/serve_chat.hpp"
#include "support/sanitizer.hpp"
#include "support/support.hpp"

namespace serve_chat_test {

using serve::ChatFormat;
using serve::ChatTemplate;

std::string repeated(const std::string& part, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

TEST(ServeChat, TakesTimeInProportionToTheTemplate) {
  constexpr std::size_t size = std::size_t{1} << 20;  // the longest that is read
  const std::string system = "<|im_start|>system\n", quoted = "'<|im_start|>system\\n";
  const std::clock_t begin = std::clock();  // of the processor: others may hold up this test
  for (const std::string& source :
       {"{{" + repeated("m.role+", size), "{{" + repeated("m['content']+", size), repeated(system, size) + "<|im_end|>",
        "{{" + quoted + repeated("\\\\", size) + "<|im_end|>'}}", "{{" + repeated(quoted, size) + "'}}",
        repeated("{{-", size), repeated("'", size)}) {
    ChatTemplate::recognised(source);
    static_cast<void>(ChatTemplate(ChatFormat::chatml, {}, source));
  }
  // A tenth of a second; what took time in proportion to its square took minutes.
  if (!support::under_valgrind()) {
    EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 20.0);
  }
}

TEST(ServeChat, HasTheSystemMessageOfTheTemplate) {
  const std::vector<serve::Message> messages{{"user", "a"}};
  const auto text = [&](const std::string& source) { return ChatTemplate(ChatFormat::chatml, {}, source)(messages); };
  const std::string plain = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(text(""), plain);
  EXPECT_EQ(text("{{'<|im_start|>system\\nBe \\'brief\\'.\\n<|im_end|>\\n'}}"),
            "<|im_start|>system\nBe 'brief'.\n<|im_end|>\n" + plain);
  EXPECT_EQ(text("{{'<|im_start|>system\\n'+m.content+'<|im_end|>'}}{{'<|im_start|>system\\nB<|im_end|>'}}"),
            "<|im_start|>system\nB<|im_end|>\n" + plain);
  EXPECT_EQ(text("{{'<|im_start|>system\\nwithout an end"), plain);
}

}  // namespace serve_chat_test
