// The pictures of visualize: a heat map of layers over tokens, as SVG.
#ifndef MINIMAMBA_EXAMPLES_VISUALIZE_PICTURE_HPP
#define MINIMAMBA_EXAMPLES_VISUALIZE_PICTURE_HPP

#include <minimamba/core/error.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "visualize_labels.hpp"

namespace visualize {

/// A colour scale from small to large values. Lightness only grows or only falls along it, so that it can be read with
/// any colour vision, and in print; the large values stand out from the page.
using Ramp = std::array<std::uint32_t, 9>;
inline constexpr Ramp dt_light{0xfaf4dd, 0xf8e3af, 0xfcd07c, 0xfcac4b, 0xf67d34,
                               0xdb4b4a, 0xab2062, 0x6d1266, 0x320951};
inline constexpr Ramp dt_dark{0x251c36, 0x412459, 0x63287a, 0x972c80, 0xcd2e73, 0xee5c5e, 0xff8f5a, 0xfec684, 0xfff4ca};
inline constexpr Ramp reach_light{0xebf8e8, 0xcdefd3, 0xa8e7c6, 0x76d4be, 0x3cb8ba,
                                  0x0593b2, 0x0269a7, 0x1b3e87, 0x181958};
inline constexpr Ramp reach_dark{0x1b1f39, 0x23305e, 0x234486, 0x1262a4, 0x0486b4,
                                 0x0dabc0, 0x44d0c1, 0x9cebbd, 0xe7ffd0};
inline constexpr std::size_t colours = 32;

/// A value that lies beyond the prompt, which only a reach can.
inline constexpr double beyond = std::numeric_limits<double>::infinity();

/// One of the numbers that a cell has, such as the median over the channels.
struct Statistic {
  std::string name;
  int percent = -1;                 // of a quantile
  std::vector<double> values = {};  // [layers, tokens]
};

/// What a picture shows, of each layer and token.
struct Quantity {
  std::string file = {}, title = {}, unit = {};  // "dt"; the heading; what follows a number: " tokens", or nothing
  std::string over = {};                         // what the statistics are over: "channels"
  std::string small = {}, large = {};            // what the ends of the scale mean
  std::string note = {};                         // what follows the name of a statistic below the heading
  Ramp light = {}, dark = {};
  bool may_be_beyond = false;
  std::vector<std::size_t> layers = {};  // their numbers in the model
  std::vector<Label> tokens = {};
  std::vector<Statistic> statistics = {};
  std::size_t shown = 0;  // of the statistics

  double at(std::size_t statistic, std::size_t row, std::size_t token) const {
    return statistics[statistic].values[row * tokens.size() + token];
  }
};

/// The line below the heading, for a statistic.
inline std::string note_of(const Quantity& quantity, const Statistic& statistic) {
  return statistic.name + (statistic.name.ends_with('%') ? " quantile" : "") + quantity.note;
}

/// A number with four digits, the same in every locale.
inline std::string digits(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value, std::chars_format::general, 4).ptr};
}
inline std::string value_text(const Quantity& quantity, double value) {
  if (value == beyond) return "beyond the prompt";
  return digits(value) + (value == 1 && quantity.unit.ends_with('s') ? quantity.unit.substr(0, quantity.unit.size() - 1)
                                                                     : quantity.unit);
}
/// A place on a picture, to a tenth of a pixel.
inline std::string px(double value) {
  char text[32];
  const char* const end = std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed, 1).ptr;
  return {static_cast<const char*>(text), end[-1] == '0' ? end - 2 : end};
}

/// A logarithmic scale.
struct Scale {
  double low = 1, high = 10;

  /// From the smallest to the largest finite value of a statistic, but at most eight powers of ten.
  static Scale of(const Statistic& statistic) {
    Scale scale{beyond, 0};
    for (const double value : statistic.values) {
      if (value == beyond) continue;
      scale.low = std::min(scale.low, value);
      scale.high = std::max(scale.high, value);
    }
    if (scale.high <= 0) return {};
    scale.low = std::max(scale.low, scale.high * 1e-8);
    if (scale.high < scale.low * 1.01) scale.high = scale.low * 2;
    return scale;
  }
  /// From 0 to 1.
  double place(double value) const {
    return std::clamp(std::log(std::max(value, low) / low) / std::log(high / low), 0.0, 1.0);
  }
  std::size_t colour(double value) const {
    return std::min(colours - 1, static_cast<std::size_t>(place(value) * static_cast<double>(colours)));
  }
  /// At most six round numbers.
  std::vector<double> ticks() const {
    if (high / low < 5) return evenly();
    for (const auto& steps : {std::vector<double>{1, 2, 3, 5, 7}, {1, 2, 5}, {1, 3}, {1}}) {
      std::vector<double> found = within(steps, 1);
      if (found.size() <= 6 && found.size() >= 2) return found;
    }
    const std::vector<double> found = within({1}, 2);
    return found.size() >= 2 ? found : std::vector<double>{low, high};
  }

 private:
  /// For a short scale: multiples of 1, 2 or 5 times a power of ten.
  std::vector<double> evenly() const {
    const double least = (high - low) / 5, power = std::pow(10, std::floor(std::log10(least)));
    const double step = power * (least <= power ? 1 : least <= 2 * power ? 2 : least <= 5 * power ? 5 : 10);
    std::vector<double> found;
    for (double i = std::ceil(low / step * (1 - 1e-9)); i * step <= high * (1 + 1e-9); ++i) found.push_back(i * step);
    return found;
  }
  std::vector<double> within(const std::vector<double>& steps, int every) const {
    std::vector<double> found;
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    for (int power = static_cast<int>(std::floor(std::log10(low))); power <= last; ++power) {
      for (const double step : steps) {
        const double tick = step * std::pow(10, power);
        if (power % every == 0 && tick >= low * 0.999 && tick <= high * 1.001) found.push_back(tick);
      }
    }
    return found;
  }
};

/// Where cells and tokens are: tokens in lines, as a text is wrapped, and above each line a row of cells for each
/// layer.
class Layout {
 public:
  static constexpr double left = 62, right = 22, top = 118, gap = 18, column = 7.2, text = 18, widest = 940, bar = 320,
                          bar_top = 66;
  struct Place {
    std::size_t line;
    double x, width;
  };

  explicit Layout(const Quantity& quantity) : rows_(quantity.layers.size()) {
    double x = 0, longest = 0;
    for (const Label& label : quantity.tokens) {
      const double width = std::max(14.0, column * static_cast<double>(label.columns) + 6);
      if (x > 0 && x + width > widest) ++last_line_, x = 0;
      places_.push_back({last_line_, left + x, width});
      x += width;
      longest = std::max(longest, x);
    }
    width_ = left + std::max(longest, 700.0) + right;
  }

  double cell() const { return rows_ <= 8 ? 22 : rows_ <= 16 ? 16 : rows_ <= 32 ? 11 : 8; }
  double width() const { return width_; }
  double height() const { return line_top(last_line_ + 1); }
  std::size_t lines() const { return last_line_ + 1; }
  double line_top(std::size_t line) const {
    return top + static_cast<double>(line) * (cell() * static_cast<double>(rows_) + text + gap);
  }
  /// The first layer is the lowest row, next to the text that it reads.
  double row_top(std::size_t line, std::size_t row) const {
    return line_top(line) + cell() * static_cast<double>(rows_ - 1 - row);
  }
  double baseline(std::size_t line) const { return line_top(line) + cell() * static_cast<double>(rows_) + 14; }
  const std::vector<Place>& places() const { return places_; }
  /// Rows have names as far as there is room.
  bool names(std::size_t row) const { return rows_ <= 16 || row % (rows_ <= 32 ? 2 : 4) == 0; }

 private:
  std::size_t rows_, last_line_ = 0;
  std::vector<Place> places_;
  double width_ = 0;
};

inline std::string hex(std::uint32_t colour) {
  char text[8];
  std::snprintf(text, sizeof text, "#%06x", static_cast<unsigned>(colour));
  return text;
}

/// The colour at a place from 0 to 1.
inline std::string colour_at(const Ramp& ramp, double place) {
  const double x = place * static_cast<double>(ramp.size() - 1);
  const std::size_t from = std::min(static_cast<std::size_t>(x), ramp.size() - 2);
  std::uint32_t mixed = 0;
  for (int shift = 16; shift >= 0; shift -= 8) {
    const double a = (ramp[from] >> shift) & 0xFF, b = (ramp[from + 1] >> shift) & 0xFF;
    mixed = (mixed << 8) | static_cast<std::uint32_t>(std::lround(a + (b - a) * (x - static_cast<double>(from))));
  }
  return hex(mixed);
}

/// The style of a picture, in the light and in the dark. All rules are within the class of the picture, because the
/// page has them too.
inline std::string picture_style(const Quantity& quantity) {
  const auto ramp = [&](const Ramp& colour) {
    std::string rules;
    for (std::size_t i = 0; i < colours; ++i) {
      rules += ".map .c" + std::to_string(i) +
               "{fill:" + colour_at(colour, static_cast<double>(i) / static_cast<double>(colours - 1)) + "}";
    }
    return rules + "\n";
  };
  return ".map{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
         ".map .t{font:12px ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;text-anchor:middle}"
         ".map .h{font-size:16px;font-weight:600}.map .e{text-anchor:end}.map .m{text-anchor:middle}"
         ".map .b{fill:url(#beyond)}\n"
         ".map .p{fill:#fff}.map text{fill:#1d1f24}.map .s{fill:#646a75}.map .l{stroke:#646a75}"
         ".map .u{fill:#eceef1}.map .v{stroke:#9aa1ad}\n" +
         ramp(quantity.light) +
         "@media (prefers-color-scheme:dark){.map .p{fill:#16181c}.map text{fill:#e8eaee}.map .s{fill:#9aa1ad}"
         ".map .l{stroke:#9aa1ad}.map .u{fill:#2a2d34}.map .v{stroke:#6b7280}\n" +
         ramp(quantity.dark) + "}\n";
}

inline std::string text_at(double x, double y, std::string_view classes, std::string_view content) {
  return "<text x=\"" + px(x) + "\" y=\"" + px(y) + "\"" +
         (classes.empty() ? "" : " class=\"" + std::string(classes) + "\"") + ">" + std::string(content) + "</text>\n";
}
inline std::string rect_at(std::string_view name, double x, double y, double width, double height) {
  return "<rect class=\"" + std::string(name) + "\" x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"" + px(width) +
         "\" height=\"" + px(height) + "\"";
}

/// The heading and the colour scale.
inline std::string head_svg(const Quantity& quantity) {
  constexpr double bar = Layout::bar, y = Layout::bar_top;
  const Scale scale = Scale::of(quantity.statistics[quantity.shown]);
  std::string svg =
      text_at(Layout::left, 26, "h", escaped(quantity.title)) +
      text_at(Layout::left, 46, "s note", escaped(note_of(quantity, quantity.statistics[quantity.shown]))) +
      "<g class=\"legend\">\n";
  for (std::size_t i = 0; i < colours; ++i) {
    const double step = bar / static_cast<double>(colours);
    svg += rect_at("c" + std::to_string(i), Layout::left + step * static_cast<double>(i), y, step + 0.3, 12) + "/>\n";
  }
  for (const double tick : scale.ticks()) {
    const double x = Layout::left + bar * scale.place(tick);
    svg += "<path class=\"l\" d=\"M" + px(x) + " " + px(y + 12) + "v4\"/>\n" + text_at(x, y + 28, "m s", digits(tick));
  }
  svg += "</g>\n";
  const double after = Layout::left + bar + 18;
  svg += text_at(after, y + 10, "s", escaped("small: " + quantity.small + "; large: " + quantity.large));
  if (quantity.may_be_beyond) {
    svg += rect_at("b", after, y + 16, 12, 12) + "/>\n" +
           text_at(after + 18, y + 27, "s", "beyond the prompt: not even all tokens so far suffice");
  }
  return svg;
}

/// What a cell is, in words, with its numbers.
inline std::string cell_text(const Quantity& quantity, std::size_t row, std::size_t token) {
  std::string text = "token " + std::to_string(token) + " " + quantity.tokens[token].text + ", layer " +
                     std::to_string(quantity.layers[row]);
  for (std::size_t i = 0; i < quantity.statistics.size(); ++i) {
    const bool brief =
        i == quantity.shown || quantity.statistics[i].percent == 10 || quantity.statistics[i].percent == 90;
    if (brief) text += ", " + quantity.statistics[i].name + ": " + value_text(quantity, quantity.at(i, row, token));
  }
  return text;
}

/// The cells of a line and layer.
inline std::string cells_svg(const Quantity& quantity, const Layout& layout, std::size_t line, std::size_t row,
                             bool titles) {
  const Scale scale = Scale::of(quantity.statistics[quantity.shown]);
  std::string svg = "<g class=\"row\">\n";
  const auto& places = layout.places();
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i].line != line) continue;
    const double value = quantity.at(quantity.shown, row, i);
    svg += rect_at(value == beyond ? "b" : "c" + std::to_string(scale.colour(value)), places[i].x,
                   layout.row_top(line, row), places[i].width - 1, layout.cell() - 1);
    svg += titles ? "><title>" + escaped(cell_text(quantity, row, i)) + "</title></rect>\n" : "/>\n";
  }
  return svg + "</g>\n";
}

/// The tokens below a line. textLength keeps each within its column, whatever typeface there is.
inline std::string tokens_svg(const Quantity& quantity, const Layout& layout, std::size_t line) {
  std::string svg;
  const auto& places = layout.places();
  bool first = true;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i].line != line) continue;
    if (first) svg += text_at(Layout::left - 8, layout.baseline(line), "e s", std::to_string(i));
    first = false;
    const Label& label = quantity.tokens[i];
    svg += "<text class=\"t\" x=\"" + px(places[i].x + (places[i].width - 1) / 2) + "\" y=\"" +
           px(layout.baseline(line)) + "\"";
    if (label.columns > 1) {
      svg += " textLength=\"" + px(Layout::column * static_cast<double>(label.columns)) +
             "\" lengthAdjust=\"spacingAndGlyphs\"";
    }
    svg += ">" + escaped(label.text) + "</text>\n";
  }
  return svg;
}

/// The picture. With titles, browsers show the numbers of a cell while the pointer is on it; the page has its own way.
inline std::string picture_svg(const Quantity& quantity, bool titles) {
  const Layout layout(quantity);
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"map\" viewBox=\"0 0 " + px(layout.width()) +
                    " " + px(layout.height()) + "\" width=\"" + px(layout.width()) + "\" height=\"" +
                    px(layout.height()) + "\" role=\"img\" aria-label=\"" + escaped(quantity.title) + "\">\n<style>" +
                    picture_style(quantity) + "</style>\n";
  if (quantity.may_be_beyond) {
    svg +=
        "<defs><pattern id=\"beyond\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
        "<rect class=\"u\" width=\"6\" height=\"6\"/><path class=\"v\" d=\"M-1 7L7 -1M-1 1L1 -1M5 7L7 5\"/>"
        "</pattern></defs>\n";
  }
  svg += rect_at("p", 0, 0, layout.width(), layout.height()) + "/>\n" + head_svg(quantity);
  for (std::size_t line = 0; line < layout.lines(); ++line) {
    for (std::size_t row = 0; row < quantity.layers.size(); ++row) {
      if (layout.names(row)) {
        svg += text_at(Layout::left - 8, layout.row_top(line, row) + (layout.cell() - 1) / 2 + 4, "e s",
                       "layer " + std::to_string(quantity.layers[row]));
      }
      svg += cells_svg(quantity, layout, line, row, titles);
    }
    svg += tokens_svg(quantity, layout, line);
  }
  return svg + "</svg>\n";
}

}  // namespace visualize

#endif
