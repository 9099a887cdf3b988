// Numbers with a comma: a locale that nothing the library writes or reads may depend on.
#ifndef MINIMAMBA_TESTS_LOCALE_HPP
#define MINIMAMBA_TESTS_LOCALE_HPP

#include <clocale>
#include <locale>
#include <string>

namespace support {

/// As long as it lives, C++ streams write 1.234,5, and so does printf where the machine has such a locale.
class CommaLocale {
 public:
  CommaLocale() : before_(std::setlocale(LC_ALL, nullptr)), before_in_cpp_(std::locale()) {
    std::locale::global(std::locale(std::locale::classic(), new Comma));
    for (const char* const name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "ru_RU.UTF-8", "de_DE"}) {
      if (std::setlocale(LC_ALL, name) != nullptr) break;
    }
  }
  CommaLocale(const CommaLocale&) = delete;
  CommaLocale& operator=(const CommaLocale&) = delete;
  ~CommaLocale() {
    std::locale::global(before_in_cpp_);
    std::setlocale(LC_ALL, before_.c_str());
  }

  /// Whether printf writes a comma too.
  bool reaches_c() const { return *std::localeconv()->decimal_point == ','; }

 private:
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };

  std::string before_;
  std::locale before_in_cpp_;
};

}  // namespace support

#endif
