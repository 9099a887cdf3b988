// What serve answers at each path.
#ifndef MINIMAMBA_EXAMPLES_SERVE_ROUTES_HPP
#define MINIMAMBA_EXAMPLES_SERVE_ROUTES_HPP

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve_http.hpp"
#include "serve_page.hpp"
#include "serve_task.hpp"

namespace serve {

/// The part of a body in the memory that all bodies share. Small bodies need none of it.
class BodyMemory {
 public:
  static constexpr std::size_t small = std::size_t{64} << 10;

  BodyMemory(std::atomic<std::size_t>& total, std::size_t most) : total_(total), most_(most) {}
  BodyMemory(const BodyMemory&) = delete;
  BodyMemory& operator=(const BodyMemory&) = delete;
  ~BodyMemory() { total_ -= held_; }

  /// Returns false if a body of this size does not fit.
  bool grow(std::size_t size) {
    if (size <= small) return true;
    const std::size_t more = size - held_;
    held_ = size;
    return (total_ += more) <= most_;
  }

 private:
  std::atomic<std::size_t>& total_;
  std::size_t most_, held_ = 0;
};

/// Connects a service to a server, which must not outlive it.
class Routes {
 public:
  Routes(Service& service, HttpServer& server, std::string api_key)
      : service_(service), server_(server), api_key_(std::move(api_key)) {
    server.set_pre_routing_handler([this](const auto& request, auto& response) {
      admit(request, response);
      return httplib::Server::HandlerResponse::Unhandled;
    });
    server.set_exception_handler(
        [this](const auto& request, auto& response, std::exception_ptr error) { refuse(request, response, error); });
    server.set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (response.body.empty()) {  // cpp-httplib's own
        const ApiError error(response.status,
                             response.status == 400 ? "the request is not HTTP" : "the request is refused");
        response.set_content(error.json(), "application/json");
        close_after(response);
      }
    });
    server.set_expect_100_continue_handler([this](const auto& request, auto& response) {
      try {
        admit(request, response);
        return 100;
      } catch (...) {
        refuse(request, response, std::current_exception());
        return response.status;
      }
    });
    server.Get("/.*", [this](const auto& request, auto& response) { get(request, response); });
    server.Delete("/.*", [this](const auto& request, auto& response) { erase(request, response); });
    server.Post("/.*",
                [this](const auto& request, auto& response, const auto& reader) { post(request, response, reader); });
  }
  Routes(const Routes&) = delete;
  Routes& operator=(const Routes&) = delete;

 private:
  static constexpr std::string_view models_path = "/v1/models/", sessions_path = "/v1/sessions/";

  /// The method of a path; empty if there is no such path.
  static std::string_view method_of(std::string_view path) {
    for (const std::string_view one : {"/", "/health", "/metrics", "/v1/models"}) {
      if (path == one) return "GET";
    }
    for (const std::string_view one : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
      if (path == one) return "POST";
    }
    if (path.size() > 300) return "";
    return path.starts_with(models_path) ? "GET" : path.starts_with(sessions_path) ? "DELETE" : "";
  }

  /// Throws ApiError for a request that is refused whatever its body says.
  void admit(const httplib::Request& request, httplib::Response& response) const {
    const std::string_view method = method_of(request.path);
    if (method.empty()) throw ApiError(404, "there is no " + request.path.substr(0, 100), "", "not_found");
    if (!api_key_.empty() && request.path != "/" && request.path != "/health" && !has_key(request)) {
      response.set_header("WWW-Authenticate", "Bearer");
      throw ApiError(401, "the API key is missing or wrong", "", "invalid_api_key");
    }
    const bool fits = request.method == method || (method == "GET" && request.method == "HEAD");
    if (!fits) {
      response.set_header("Allow", std::string(method));
      throw ApiError(405, "use " + std::string(method) + " for " + request.path, "", "method_not_allowed");
    }
    if (method != "POST") return;
    const bool sized = request.has_header("Content-Length"), chunked = request.has_header("Transfer-Encoding");
    if (sized && chunked) throw ApiError(400, "the body has both a length and a transfer encoding", "", "invalid_body");
    if (!sized && !chunked) throw ApiError(400, "the body is empty: expected a JSON object", "", "invalid_json");
    if (request.is_multipart_form_data()) throw ApiError(400, "expected JSON, found a form", "", "invalid_json");
    if (std::strtoull(request.get_header_value("Content-Length").c_str(), nullptr, 10) > service_.limits.body_bytes) {
      throw too_large();
    }
  }
  /// Compares all characters, so that the time tells nothing.
  bool has_key(const httplib::Request& request) const {
    const std::string given = request.get_header_value("Authorization"), expected = "Bearer " + api_key_;
    unsigned difference = given.size() == expected.size() ? 0 : 1;
    for (std::size_t i = 0; i < std::min(given.size(), expected.size()); ++i) {
      difference |=
          static_cast<unsigned char>(given[i]) ^ static_cast<unsigned>(static_cast<unsigned char>(expected[i]));
    }
    return difference == 0;
  }
  ApiError too_large() const {
    return ApiError(413, "the body is larger than " + std::to_string(service_.limits.body_bytes) + " bytes", "",
                    "request_too_large");
  }

  static ApiError as_api_error(const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const ApiError& known) {
      return known;
    } catch (const minimamba::BusyError& known) {
      return too_busy(known.what());
    } catch (const minimamba::ArgumentError& known) {
      return ApiError(400, known.what(), known.subject(), "invalid_value");
    } catch (const std::exception& other) {  // such as a lack of memory
      return ApiError(500, other.what());
    }
  }
  void refuse(const httplib::Request& request, httplib::Response& response, const std::exception_ptr& error) {
    const ApiError known = as_api_error(error);
    response.status = known.status();
    response.set_content(known.json(), "application/json");
    if (known.status() == 429 || known.status() == 409) response.set_header("Retry-After", "1");
    if (request.method == "POST" && !Connection::current().body_was_read) close_after(response);
  }
  static void close_after(httplib::Response& response) {
    Connection::current().closes = true;
    response.set_header("Connection", "close");
  }

  template <class Reader>
  std::string read_body(const Reader& reader, BodyMemory& memory) const {
    std::string body;
    bool exceeds = false, fits = true;
    const bool complete = reader([&](const char* data, std::size_t size) {
      exceeds = size > service_.limits.body_bytes - body.size();
      fits = fits && (exceeds || memory.grow(body.size() + size));
      if (!exceeds && fits) body.append(data, size);
      return !exceeds && fits;
    });
    Connection& connection = Connection::current();
    if (exceeds || connection.too_large) throw too_large();
    if (!fits) throw too_busy("many large bodies are being read");
    if (connection.too_slow) throw ApiError(408, "the body did not arrive in time", "", "timeout");
    if (!complete) throw ApiError(400, "the body could not be read", "", "invalid_json");
    connection.body_was_read = true;
    return body;
  }

  template <class Reader>
  void post(const httplib::Request& request, httplib::Response& response, const Reader& reader) {
    std::optional<TextRequest> asked;
    {
      BodyMemory memory(body_bytes_, most_bodies * service_.limits.body_bytes);
      const std::string body = read_body(reader, memory);
      std::unique_lock one_at_a_time(parsing_, std::defer_lock);  // in memory, JSON may be 20 times as large
      if (body.size() > BodyMemory::small) one_at_a_time.lock();
      const Json json = parse_body(body, service_.limits);
      if (const Json* const model = json.find("model"); model != nullptr && !model->is_null()) check_model(*model);
      if (request.path == "/tokenize") {
        response.set_content(tokenize(json), "application/json");
      } else if (request.path == "/detokenize") {
        response.set_content(detokenize(json), "application/json");
      } else {
        const bool chat = request.path == "/v1/chat/completions";
        asked = chat ? read_chat(json, service_.limits) : read_completion(json, service_.limits);
      }
    }
    if (asked) generate(*std::move(asked), request, response);
    response.status = 200;
  }
  void check_model(const Json& model) const {
    if (model.is(service_.name)) return;
    const std::string given = model.text() != nullptr ? *model.text() : minimamba::to_text(model);
    throw ApiError(404, "there is no model " + given.substr(0, 100) + ", but " + service_.name, "model",
                   "model_not_found");
  }

  void generate(TextRequest asked, const httplib::Request& request, httplib::Response& response) {
    const auto is_closed = [] { return Connection::current().is_closed(); };
    auto task = std::make_shared<TextTask>(service_, std::move(asked));
    if (!task->streams()) {
      response.set_content(task->whole(is_closed), "application/json");
      return;
    }
    response.set_header("Cache-Control", "no-cache");
    auto provider = [task = std::move(task), is_closed](std::size_t, httplib::DataSink& sink) {
      try {
        task->stream([&](const std::string& events) { return sink.write(events.data(), events.size()); }, is_closed);
      } catch (const DisconnectedError&) {
        return false;
      }
      sink.done();
      return true;
    };
    if (request.version == "HTTP/1.0") {  // which has no chunks: the end of the connection ends the answer
      close_after(response);
      response.set_content_provider("text/event-stream", std::move(provider));
    } else {
      response.set_chunked_content_provider("text/event-stream", std::move(provider));
    }
  }

  std::string tokenize(const Json& json) const {
    Fields fields(json);
    static_cast<void>(fields.text("model"));
    const std::string prompt = fields.text("prompt").value_or("");
    const Json* const special = fields.find("add_special_tokens");
    if (special != nullptr && special->flag() == nullptr)
      fields.refuse("add_special_tokens", "true or false", *special);
    fields.refuse_others();
    const bool adds = special == nullptr || *special->flag();
    const auto tokens = service_.tokenizer.encode(prompt, {.add_special_tokens = adds});
    JsonWriter answer;
    return answer.open('{').key("count").value(tokens.size()).key("tokens").value(tokens).close('}').text();
  }
  std::string detokenize(const Json& json) const {
    Fields fields(json);
    static_cast<void>(fields.text("model"));
    const Json* const tokens = fields.find("tokens");
    if (tokens == nullptr || tokens->array() == nullptr) fields.refuse("tokens", "a list of token ids", "none");
    fields.refuse_others();
    JsonWriter answer;
    const auto ids = detail::read_ids(fields, "tokens", *tokens->array());
    return answer.open('{').key("prompt").value(service_.tokenizer.decode(ids)).close('}').text();
  }

  void get(const httplib::Request& request, httplib::Response& response) const {
    if (request.path == "/") {
      response.set_header(
          "Content-Security-Policy",
          "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'");
      response.set_content(std::string(page), "text/html; charset=utf-8");
    } else if (request.path == "/health") {
      response.set_content("{\"status\":\"ok\"}", "application/json");
    } else if (request.path == "/metrics") {
      response.set_content(metrics(), "text/plain; version=0.0.4");
    } else {
      response.set_content(models(request.path), "application/json");
    }
  }
  std::string models(const std::string& path) const {
    JsonWriter json;
    const bool all = path == "/v1/models";
    const std::string asked = all ? service_.name : path.substr(models_path.size());
    if (asked != service_.name) throw ApiError(404, "there is no model " + asked, "model", "model_not_found");
    if (all) json.open('{').key("object").value("list").key("data").open('[');
    json.open('{').key("id").value(service_.name).key("object").value("model").key("created").value(0);
    json.key("owned_by").value("minimamba").close('}');
    if (all) json.close(']').close('}');
    return json.text();
  }
  void erase(const httplib::Request& request, httplib::Response& response) const {
    const std::string id = request.path.substr(sessions_path.size());
    if (id.find('/') != id.npos || id.starts_with('.') || !service_.sessions.erase(id)) {
      throw ApiError(404, "there is no session " + id, "", "not_found");
    }
    JsonWriter json;
    response.set_content(json.open('{').key("id").value(id).key("deleted").value(true).close('}').text(),
                         "application/json");
  }

  std::string metrics() const {
    std::string text;
    const auto add = [&](const std::string& name, const char* type, auto value) {
      const std::string full = "minimamba_" + name;
      text += "# TYPE " + full + " " + type + "\n" + full + " ";
      text += minimamba::number_text(static_cast<double>(value)) + "\n";
    };
    const minimamba::SchedulerStatistics done = service_.engine.statistics();
    const std::size_t unfinished = service_.engine.unfinished();
    add("answers_waiting", "gauge", done.waiting);
    add("answers_running", "gauge", unfinished - std::min(unfinished, done.waiting));
    add("answers_total", "counter", service_.engine.answers.load());
    add("prompt_tokens_total", "counter", done.prompt_tokens);
    add("reused_tokens_total", "counter", done.reused_tokens);
    add("generated_tokens_total", "counter", service_.engine.tokens.load());
    add("steps_total", "counter", done.steps);
    add("step_seconds_total", "counter", service_.engine.step_seconds.load());
    add("callback_cpu_seconds_total", "counter", service_.engine.callback_seconds.load());
    add("prefix_cache_bytes", "gauge", done.prefix_cache_bytes);
    add("state_bytes", "gauge", service_.engine.memory_bytes.load());
    add("connections", "gauge", server_.open_connections());
    add("connections_refused_total", "counter", server_.refused());
    add("requests_total", "counter", server_.requests.load());
    add("disconnects_total", "counter", service_.disconnects.load());
    add("connection_cpu_seconds_total", "counter", server_.connection_seconds());
    add("process_cpu_seconds_total", "counter", process_seconds());
    add("sessions", "gauge", service_.sessions.size());
    add("session_bytes", "gauge", service_.sessions.bytes());
    return text + service_.waits.text("minimamba_first_token_seconds");
  }

  static constexpr std::size_t most_bodies = 16;  // of the largest size, at the same time

  Service& service_;
  HttpServer& server_;
  const std::string api_key_;
  std::atomic<std::size_t> body_bytes_ = 0;
  std::mutex parsing_;
};

}  // namespace serve

#endif
