// examples/terminal.hpp: what a terminal and a shell are given.
#include "examples/terminal.hpp"

#include <gtest/gtest.h>

#include <string>

namespace terminal_test {

using program::for_terminal;
using program::shell_word;

TEST(Terminal, IsGivenNoControlCharactersButTabsAndNewlines) {
  EXPECT_EQ(for_terminal("a\tb\n"), "a\tb\n");
  EXPECT_EQ(for_terminal("\x1B[2J\x07"), "\\x1b[2J\\x07");
  EXPECT_EQ(for_terminal(std::string("\0\x0E\x7F", 3)), "\\x00\\x0e\\x7f");
  EXPECT_EQ(for_terminal("line\r\n"), "line\n");
  EXPECT_EQ(for_terminal("caf\xC3\xA9 \xE6\x97\xA5"), "caf\xC3\xA9 \xE6\x97\xA5");
  EXPECT_EQ(for_terminal("\xC2\x9B"
                         "2J\xC2\xA9\xC2"),
            "\\x9b2J\xC2\xA9\xC2");
  EXPECT_EQ(for_terminal(""), "");
}

TEST(Shell, IsGivenWordsThatItDoesNotDivide) {
  EXPECT_EQ(shell_word("my-model/a.gguf"), "my-model/a.gguf");
  EXPECT_EQ(shell_word("a b"), "'a b'");
  EXPECT_EQ(shell_word("it's $HOME"), "'it'\\''s $HOME'");
  EXPECT_EQ(shell_word("Once\nupon"), "'Once\nupon'");
  EXPECT_EQ(shell_word("~"), "'~'");
  EXPECT_EQ(shell_word(""), "''");
}

}  // namespace terminal_test
