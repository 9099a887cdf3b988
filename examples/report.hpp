// The history of a training run as a CSV table and as a self-contained SVG plot.
#ifndef MINIMAMBA_EXAMPLES_REPORT_HPP
#define MINIMAMBA_EXAMPLES_REPORT_HPP

#include <minimamba/train/trainer.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace program {

/// step,loss,validation_loss,learning_rate,gradient_norm: one line per step; the validation loss is
/// empty if it was not measured.
inline std::string loss_csv(std::span<const minimamba::StepRecord> history) {
  std::string text = "step,loss,validation_loss,learning_rate,gradient_norm\n";
  for (const minimamba::StepRecord& record : history) {
    const bool validated = !std::isnan(record.validation_loss);
    text += std::to_string(record.step) + "," + minimamba::number_text(record.loss) + "," +
            (validated ? minimamba::number_text(record.validation_loss) : "") + "," +
            minimamba::number_text(record.learning_rate) + "," + minimamba::number_text(record.gradient_norm) + "\n";
  }
  return text;
}

/// A number with one decimal place, in every locale.
inline std::string tenths(double value) {
  char text[400];  // enough for the largest double
  return {text, std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed, 1).ptr};
}

struct PlotPoint {
  double x = 0, y = 0;
};

/// The plot area in pixels, and the ranges of its axes.
struct PlotFrame {
  double left = 60, top = 20, width = 720, height = 330;
  double last_step = 1, min_loss = 0, max_loss = 1;

  std::string at(PlotPoint point) const {
    return tenths(left + width * point.x / last_step) + "," +
           tenths(top + height * (max_loss - point.y) / (max_loss - min_loss));
  }
};

inline std::string plot_curve(const PlotFrame& frame, std::span<const PlotPoint> points, const char* colour) {
  std::string text = "<polyline fill=\"none\" stroke=\"" + std::string(colour) + "\" stroke-width=\"1.5\" points=\"";
  for (const PlotPoint& point : points) text += frame.at(point) + " ";
  return text + "\"/>\n";
}

inline std::string plot_text(double x, double y, const std::string& anchor, const std::string& content) {
  std::string escaped;
  for (const char c : content) escaped += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  return "<text x=\"" + minimamba::number_text(x) + "\" y=\"" + minimamba::number_text(y) + "\" text-anchor=\"" +
         anchor + "\">" + escaped + "</text>\n";
}

/// The loss averaged over groups of steps, about 400 points in total: the noise of single batches would hide the curve.
inline std::vector<PlotPoint> smoothed(std::span<const minimamba::StepRecord> history) {
  const std::size_t some = std::max<std::size_t>(history.size() / 400, 1);
  std::vector<PlotPoint> points;
  for (std::size_t first = 0; first < history.size(); first += some) {
    const auto part = history.subspan(first, std::min(some, history.size() - first));
    double sum = 0;
    for (const minimamba::StepRecord& record : part) sum += record.loss;
    points.push_back({static_cast<double>(part.back().step), sum / static_cast<double>(part.size())});
  }
  return points;
}

/// An SVG plot of the training and the validation loss over the steps.
inline std::string loss_svg(std::span<const minimamba::StepRecord> history,
                            const std::string& unit = "nats per token") {
  const std::vector<PlotPoint> losses = smoothed(history);
  std::vector<PlotPoint> validations;
  for (const minimamba::StepRecord& record : history) {
    if (!std::isnan(record.validation_loss)) {
      validations.push_back({static_cast<double>(record.step), record.validation_loss});
    }
  }
  PlotFrame frame;
  for (const std::span<const PlotPoint> points : {std::span(losses), std::span<const PlotPoint>(validations)}) {
    for (const PlotPoint& point : points) {
      frame.max_loss = std::max(frame.max_loss, std::ceil(point.y));
      frame.last_step = std::max(frame.last_step, point.x);
    }
  }
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 400\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"800\" height=\"400\" fill=\"white\"/>\n";
  for (int tick = 0; tick <= 5; ++tick) {
    const double part = tick / 5.0, value = frame.max_loss * part, y = frame.top + frame.height * (1 - part);
    svg += "<line x1=\"60\" x2=\"780\" y1=\"" + minimamba::number_text(y) + "\" y2=\"" + minimamba::number_text(y) +
           "\" stroke=\"#ddd\"/>\n";
    svg += plot_text(frame.left - 8, y + 4, "end", minimamba::number_text(value));
    svg += plot_text(frame.left + frame.width * part, frame.top + frame.height + 18, "middle",
                     minimamba::number_text(std::round(frame.last_step * part)));
  }
  svg += plot_curve(frame, losses, "#1f77b4") + plot_curve(frame, validations, "#d62728");
  svg += plot_text(420, 392, "middle", "steps; loss in " + unit + " (blue: training, red: validation)");
  return svg + "</svg>\n";
}

}  // namespace program

#endif
