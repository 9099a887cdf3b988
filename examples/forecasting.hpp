// What `forecast` makes of a series: the rows that its model reads and what it predicts, one value at a time; how they
// are scaled; naive forecasts to compare with; and a picture.
#ifndef MINIMAMBA_EXAMPLES_FORECASTING_HPP
#define MINIMAMBA_EXAMPLES_FORECASTING_HPP

#include <minimamba/io.hpp>
#include <minimamba/train/sequence_trainer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "report.hpp"

namespace forecasting {

/// How values become inputs. All of it is saved with the model, as forecast.json.
struct Scaling {
  std::int64_t horizon = 1;        // H, steps ahead that are predicted
  std::int64_t period = 0;         // of a season, in steps; 0: none
  bool level = true;               // whether the model sees the level of the series, or only its changes
  double mean = 0, deviation = 1;  // of the values to train on
  double step = 1, ahead = 1;      // standard deviation of the change in one step, and in up to H steps

  std::size_t columns() const { return static_cast<std::size_t>((level ? 1 : 0) + 1 + (period > 0 ? horizon : 0)); }
};

inline double deviation_of(const std::vector<double>& values) {
  double sum = 0, squares = 0;
  for (const double x : values) sum += x;
  const double mean = sum / static_cast<double>(values.size());
  for (const double x : values) squares += (x - mean) * (x - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(values.size()));
  return deviation > 0 ? deviation : 1;
}

/// Measures the values to train on.
inline Scaling measured(const std::vector<double>& values, Scaling scaling) {
  std::vector<double> steps, changes;
  for (std::size_t t = 0; t + 1 < values.size(); ++t) {
    steps.push_back(values[t + 1] - values[t]);
    for (std::size_t h = 1; h <= static_cast<std::size_t>(scaling.horizon) && t + h < values.size(); ++h) {
      changes.push_back(values[t + h] - values[t]);
    }
  }
  double sum = 0;
  for (const double x : values) sum += x;
  scaling.mean = sum / static_cast<double>(values.size());
  scaling.deviation = deviation_of(values);
  scaling.step = deviation_of(steps);
  scaling.ahead = deviation_of(changes);
  return scaling;
}

/// The inputs of a stream of values: its level, its last change, and how the season before went on.
class Inputs {
 public:
  explicit Inputs(const Scaling& scaling)
      : scaling_(scaling), last_(static_cast<std::size_t>(std::max<std::int64_t>(scaling.period, 1))) {}

  /// Adds a value; writes the row that the model reads.
  void push(double value, float* row) {
    const double before = count_ == 0 ? value : last_[(count_ - 1) % last_.size()];
    if (scaling_.level) *row++ = static_cast<float>((value - scaling_.mean) / scaling_.deviation);
    *row++ = static_cast<float>((value - before) / scaling_.step);
    const auto P = static_cast<std::size_t>(scaling_.period);
    for (std::size_t h = 1; P > 0 && h <= static_cast<std::size_t>(scaling_.horizon); ++h) {
      // The value at the same place of the season, (h - 1) % P + 1 - P steps from now.
      const bool known = count_ >= P;
      const std::size_t place = (count_ + (h - 1) % P + 1) % last_.size();
      const double then = !known ? value : (h - 1) % P + 1 == P ? value : last_[place];
      *row++ = static_cast<float>((then - value) / scaling_.ahead);
    }
    last_[count_++ % last_.size()] = value;
  }

 private:
  Scaling scaling_;
  std::vector<double> last_;  // the last P values
  std::size_t count_ = 0;
};

/// The rows of a whole series, of which the first `training` are to train on: their targets do not reach beyond them.
inline minimamba::Series series_of(const std::vector<double>& values, std::size_t training, const Scaling& scaling) {
  const auto H = static_cast<std::size_t>(scaling.horizon);
  minimamba::Series series{.columns = scaling.columns(), .targets_in_row = H};
  series.inputs.resize(values.size() * series.columns);
  Inputs inputs(scaling);
  for (std::size_t t = 0; t < values.size(); ++t) {
    inputs.push(values[t], series.inputs.data() + t * series.columns);
    for (std::size_t h = 1; h <= H; ++h) {
      const std::size_t end = t < training ? training : values.size();
      series.targets.push_back(t + h < end ? static_cast<float>((values[t + h] - values[t]) / scaling.ahead)
                                           : std::numeric_limits<float>::quiet_NaN());
    }
  }
  return series;
}

inline std::string to_json(const Scaling& scaling) {
  minimamba::JsonWriter json(2);
  json.open('{');
  json.key("horizon").value(scaling.horizon);
  json.key("period").value(scaling.period);
  json.key("level").value(scaling.level);
  json.key("mean").value(scaling.mean);
  json.key("deviation").value(scaling.deviation);
  json.key("step").value(scaling.step);
  json.key("ahead").value(scaling.ahead);
  json.close('}');
  return json.text() + "\n";
}

/// Throws FormatError for a file that to_json did not write.
inline Scaling from_json(const minimamba::ByteSource& source) {
  const minimamba::Json json = minimamba::read_json(source);
  const auto number = [&](const char* key, double least) {
    const minimamba::Json* const value = json.find(key);
    const auto found = value == nullptr ? std::nullopt : value->number();
    if (found && std::isfinite(*found) && *found >= least && *found <= 1e300) return *found;
    throw minimamba::FormatError(source.name() + ": " + key, "a number of at least " + minimamba::number_text(least),
                                 "none");
  };
  const auto count = [&](const char* key, double least) {
    const double found = number(key, least);
    if (found <= 65536 && found == std::floor(found)) return static_cast<std::int64_t>(found);
    throw minimamba::FormatError(source.name() + ": " + key, "an integer up to 65536", minimamba::number_text(found));
  };
  const minimamba::Json* const level = json.find("level");
  if (level == nullptr || level->flag() == nullptr) {
    throw minimamba::FormatError(source.name() + ": level", "true or false", "neither");
  }
  constexpr double tiny = 1e-300;
  return {.horizon = count("horizon", 1),
          .period = count("period", 0),
          .level = *level->flag(),
          .mean = number("mean", -1e300),
          .deviation = number("deviation", tiny),
          .step = number("step", tiny),
          .ahead = number("ahead", tiny)};
}

/// The forecasts of a series from some of its rows on, [rows, H Q], in the units of the series.
struct Forecasts {
  std::size_t first = 0;               // the first row from which there is one
  std::vector<double> quantiles = {};  // Q
  std::vector<double> values = {};

  double at(std::size_t row, std::size_t h, std::size_t k, std::size_t H) const {
    return values[((row - first) * H + h - 1) * quantiles.size() + k];
  }
  /// The index of the quantile that is nearest to the median.
  std::size_t median() const {
    const auto nearer = [](double a, double b) { return std::abs(a - 0.5) < std::abs(b - 0.5); };
    return static_cast<std::size_t>(std::min_element(quantiles.begin(), quantiles.end(), nearer) - quantiles.begin());
  }
};

/// Mean absolute errors over all forecasts whose value is known, of the medians and of the naive forecasts; and how
/// many of the values lie between the first and the last quantile.
struct Scores {
  double model = 0, last = 0, seasonal = 0, inside = 0;
  std::size_t count = 0;
};
inline Scores scores_of(const std::vector<double>& y, const Forecasts& forecasts, const Scaling& scaling) {
  Scores scores;
  const auto H = static_cast<std::size_t>(scaling.horizon), P = static_cast<std::size_t>(scaling.period);
  for (std::size_t t = forecasts.first; t < y.size(); ++t) {
    for (std::size_t h = 1; h <= H && t + h < y.size(); ++h) {
      const double value = y[t + h];
      const std::size_t back = P == 0 ? 0 : (h + P - 1) / P * P;  // whole seasons, to a value that is known
      scores.model += std::abs(forecasts.at(t, h, forecasts.median(), H) - value);
      scores.last += std::abs(y[t] - value);
      if (P > 0 && t + h >= back) scores.seasonal += std::abs(y[t + h - back] - value);
      const double low = forecasts.at(t, h, 0, H), high = forecasts.at(t, h, forecasts.quantiles.size() - 1, H);
      scores.inside += value >= low && value <= high ? 1 : 0;
      ++scores.count;
    }
  }
  for (double* const sum : {&scores.model, &scores.last, &scores.seasonal, &scores.inside}) {
    *sum /= static_cast<double>(std::max<std::size_t>(scores.count, 1));
  }
  return scores;
}

/// An SVG plot of the end of a series, at most 300 values, with what was forecast for each of them H steps before: the
/// median, and the range from the first to the last quantile.
inline std::string plot_svg(const std::vector<double>& y, const Forecasts& forecasts, std::size_t H,
                            const std::string& title) {
  const std::size_t begin = std::max(forecasts.first + H, y.size() > 300 ? y.size() - 300 : 0);
  const std::size_t last = forecasts.quantiles.size() - 1;
  double low = y[begin], high = y[begin];
  for (std::size_t t = begin; t < y.size(); ++t) {
    low = std::min({low, y[t], forecasts.at(t - H, H, 0, H)});
    high = std::max({high, y[t], forecasts.at(t - H, H, last, H)});
  }
  const double range = high > low ? high - low : 1,
               rows = static_cast<double>(std::max<std::size_t>(y.size() - begin, 2) - 1);
  const auto point = [&](std::size_t t, double value) {
    return program::tenths(70 + 710 * static_cast<double>(t - begin) / rows) + "," +
           program::tenths(40 + 290 * (high - value) / range) + " ";
  };
  std::string truth, median, band;
  for (std::size_t t = begin; t < y.size(); ++t) {
    truth += point(t, y[t]);
    median += point(t, forecasts.at(t - H, H, forecasts.median(), H));
    band += point(t, forecasts.at(t - H, H, last, H));
  }
  for (std::size_t t = y.size(); t-- > begin;) band += point(t, forecasts.at(t - H, H, 0, H));
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 380\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"800\" height=\"380\" fill=\"white\"/>\n" +
      program::plot_text(425, 22, "middle", title);
  for (int tick = 0; tick <= 4; ++tick) {
    const double height = 330 - 290 * tick / 4.0;
    svg += "<line x1=\"70\" x2=\"780\" y1=\"" + program::tenths(height) + "\" y2=\"" + program::tenths(height) +
           "\" stroke=\"#ddd\"/>\n" +
           program::plot_text(62, height + 4, "end", program::tenths(low + range * tick / 4));
  }
  svg += "<polygon points=\"" + band + "\" fill=\"#1f77b4\" fill-opacity=\"0.25\"/>\n";
  svg += "<polyline points=\"" + median + "\" fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"1.5\"/>\n";
  svg += "<polyline points=\"" + truth + "\" fill=\"none\" stroke=\"black\"/>\n";
  svg += program::plot_text(425, 362, "middle",
                            "rows " + std::to_string(begin) + " to " + std::to_string(y.size() - 1) +
                                "; black: the series; blue: forecast " + std::to_string(H) +
                                " steps before, with its range");
  return svg + "</svg>\n";
}

}  // namespace forecasting

#endif
