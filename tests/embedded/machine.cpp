// Startup, timer and semihosting of Arm's MPS2 boards. The linker script is mps2.ld.
#include "machine.hpp"

#include <cstddef>
#include <cstdint>

extern "C" {
extern std::uint32_t stack_top[], data_begin[], data_end[], bss_begin[], bss_end[];
extern const std::uint32_t data_in_flash[], flash_end[];
using Function = void (*)();
extern const Function init_begin[], init_end[];
[[noreturn]] void reset();
}

namespace {

constexpr std::uint32_t paint = 0xDEADBEEF;
constexpr std::uint32_t painted = 64 << 10;  // bytes below the top of the stack

std::uint32_t address(const void* pointer) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(pointer));
}
volatile std::uint32_t& device(std::uint32_t where) {
  return *reinterpret_cast<volatile std::uint32_t*>(static_cast<std::uintptr_t>(where));
}

/// Arm's semihosting: operation in r0, argument in r1.
void semihost(std::uint32_t operation, std::uint32_t argument) {
  register std::uint32_t r0 asm("r0") = operation;
  register std::uint32_t r1 asm("r1") = argument;
  asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

std::uint32_t* lowest_painted() { return reinterpret_cast<std::uint32_t*>(address(stack_top) - painted); }

[[noreturn]] void fault() {
  machine::print("fault\n");
  machine::exit(3);
}

}  // namespace

/// The first words of flash: the stack, and what to do at reset and at each of the faults.
[[gnu::section(".vectors"), gnu::used]] static const Function vectors[] = {
    reinterpret_cast<Function>(stack_top), reset, fault, fault, fault, fault, fault};

/// Nothing may use the FPU or a variable before this has run.
void reset() {
  device(0xE000ED88) = device(0xE000ED88) | 0xF00000;  // CPACR: full access to the FPU
  asm volatile("dsb\n isb" ::: "memory");
  const std::uint32_t* from = data_in_flash;
  for (std::uint32_t* to = data_begin; to < data_end; ++to, ++from) *to = *from;
  for (std::uint32_t* to = bss_begin; to < bss_end; ++to) *to = 0;
  std::uint32_t* stack = nullptr;
  asm volatile("mov %0, sp" : "=r"(stack));
  for (volatile std::uint32_t* to = lowest_painted(); to < stack; ++to) *to = paint;
  for (const Function* init = init_begin; init < init_end; ++init) (*init)();
  machine::exit(machine::program());
}

namespace machine {

void print(const char* text) { semihost(0x04, address(text)); }  // SYS_WRITE0

void exit(int status) {
  const std::uint32_t reason[] = {0x20026, static_cast<std::uint32_t>(status)};  // ADP_Stopped_ApplicationExit
  semihost(0x20, address(reason));                                               // SYS_EXIT_EXTENDED
  for (;;) {
  }
}

std::uint32_t ticks() {
  constexpr std::uint32_t timer = 0x40000000;  // CMSDK APB timer 0, at 25 MHz: control, value, reload; it counts down
  if (device(timer) == 0) {
    device(timer + 8) = 0xFFFFFFFF;
    device(timer + 4) = 0xFFFFFFFF;
    device(timer) = 1;
  }
  return ~device(timer + 4);
}

std::uint32_t static_bytes() { return address(data_end) - address(data_begin) + address(bss_end) - address(bss_begin); }
std::uint32_t flash_bytes() { return address(flash_end); }
std::uint32_t stack_bytes() {
  const volatile std::uint32_t* lowest = lowest_painted();
  while (lowest < stack_top && *lowest == paint) ++lowest;
  return address(stack_top) - address(const_cast<const std::uint32_t*>(lowest));
}

}  // namespace machine
