// The body of main() of the example programs.
#ifndef MINIMAMBA_EXAMPLES_COMMAND_LINE_HPP
#define MINIMAMBA_EXAMPLES_COMMAND_LINE_HPP

#include "terminal.hpp"

#include <minimamba/core/error.hpp>
#include <minimamba/io/transfer.hpp>

#include <CLI/CLI.hpp>

#include <exception>
#include <utility>

namespace program {

/// The arguments of main().
struct CommandLine {
  int argc;
  char** argv;
};

/// Parses the command line, handles Ctrl-C, and calls run(), whose result is the exit code. An error that is thrown
/// becomes a line of standard error that begins with the program's name, and a CancelledError the exit code of Ctrl-C.
template <class Run>
int run(const char* name, CLI::App& app, CommandLine line, Run&& run) {
  try {
    app.parse(line.argc, line.argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : usage;
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
