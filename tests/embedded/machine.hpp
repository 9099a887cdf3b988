// The machine that the program of this folder runs on: its startup, its timer, and QEMU's side of semihosting.
#ifndef MINIMAMBA_TESTS_EMBEDDED_MACHINE_HPP
#define MINIMAMBA_TESTS_EMBEDDED_MACHINE_HPP

#include <cstdint>

namespace machine {

/// What runs after the startup; it returns the exit status.
int program();

/// Prints a text on the terminal of QEMU.
void print(const char* text);
/// Ends QEMU with this exit status.
[[noreturn]] void exit(int status);

/// Ticks of 40 ns of the board's first timer. QEMU with -icount shift=0 takes one nanosecond for each instruction: a
/// tick is 40 instructions.
std::uint32_t ticks();
constexpr std::uint32_t instructions_a_tick = 40;

/// Bytes of .data and .bss; of what flash holds; and of the stack, as far down as it was ever written.
std::uint32_t static_bytes();
std::uint32_t flash_bytes();
std::uint32_t stack_bytes();

}  // namespace machine

#endif
