// The body of main() of the example programs.
#ifndef MINIMAMBA_EXAMPLES_COMMAND_LINE_HPP
#define MINIMAMBA_EXAMPLES_COMMAND_LINE_HPP

#include "terminal.hpp"

#include <minimamba/core/error.hpp>
#include <minimamba/io/transfer.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace program {

/// The arguments of main().
struct CommandLine {
  int argc;
  char** argv;
};

/// The folder of a program as it was called: what stands before the last slash, with it.
inline std::string folder_of(const char* called) {
  const std::string path = called == nullptr ? "" : called;
#if defined(_WIN32)
  const std::size_t slash = path.find_last_of("/\\");
#else
  const std::size_t slash = path.rfind('/');
#endif
  return slash == path.npos ? "" : path.substr(0, slash + 1);
}

/// How many letters must be changed, added or left out to make one word of another.
inline std::size_t letters_apart(const std::string& one, const std::string& other) {
  std::vector<std::size_t> row(other.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < one.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < other.size(); ++j) {
      const std::size_t changed = diagonal + (one[i] == other[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

/// The name of the option, among those of a program, that a misspelt one may mean; empty if none is like it.
inline std::string option_like(const std::string& misspelt, const CLI::App& app) {
  const std::string word = misspelt.substr(std::min(misspelt.find_first_not_of('-'), misspelt.size()));
  std::string best;
  std::size_t least = 1 + std::max<std::size_t>(1, word.size() / 3);
  for (const CLI::Option* const option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      const bool begins = word.size() >= 3 && name.starts_with(word);
      const std::size_t apart = begins ? 1 : letters_apart(word, name);
      if (apart >= least) continue;
      least = apart;
      best = "--" + name;
    }
  }
  return best;
}

/// What is wrong with an option that there is not; empty if all that are given are known. `app` has been parsed as far
/// as it could be.
inline std::string unknown_option(const CLI::App& app, CommandLine line) {
  const CLI::App* used = &app;  // what follows a subcommand is for that
  for (int i = 1; i < line.argc; ++i) {
    const std::string word = line.argv[i], name = word.substr(0, word.find('='));
    if (word == "--") return {};
    const bool is_option =
        word.size() > 1 && word[0] == '-' && (word[1] == '-' || std::isalpha(static_cast<unsigned char>(word[1])) != 0);
    if (!is_option) {
      for (const CLI::App* const command : app.get_subcommands()) used = command->get_name() == word ? command : used;
      continue;
    }
    const CLI::Option* const option = used->get_option_no_throw(name);
    if (option == nullptr) {
      const std::string like = option_like(name, *used);
      return name + ": no such option" + (like.empty() ? "" : "; did you mean " + like + "?");
    }
    if (name.size() == word.size()) i += std::max(option->get_items_expected_min(), 0);  // its value
  }
  return {};
}

/// Parses the command line, handles Ctrl-C, and calls run(), whose result is the exit code. An error that is thrown
/// becomes a line of standard error that begins with the program's name, and a CancelledError the exit code of Ctrl-C.
template <class Run>
int run(const char* name, CLI::App& app, CommandLine line, Run&& run) {
  try {
    app.parse(line.argc, line.argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    const std::string unknown = unknown_option(app, line);
    std::fprintf(stderr, "%s: %s\nRun with --help for more information.\n", name,
                 unknown.empty() ? error.what() : unknown.c_str());
    return usage;
  }
  handle_signals();
  try {
    return std::forward<Run>(run)();
  } catch (const minimamba::CancelledError&) {
    return interrupted;
  } catch (const std::exception& error) {
    return refuse(name, error);
  }
}

}  // namespace program

#endif
