// Any bytes as what a client of serve sends on a connection, after a byte of options: heads and bodies of requests, one
// after another. cpp-httplib parses them, through our Connection; our Routes answer. Each answer is one of HTTP, with
// our headers alone, and an error in JSON says so. No model runs: what would be generated is refused.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I. -Iinclude tests/fuzz/http_fuzz.cpp -lcpp-httplib
// -lutf8proc
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "examples/serve_routes.hpp"
#include "minimamba/backend/reference.hpp"
#include "minimamba/io/any_model_of.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace http_connections {

constexpr std::size_t body_bytes = 1024;  // so that small inputs exceed it

/// serve, but for its threads and its model.
struct Server {
  explicit Server(bool waits, std::string key)
      : http({.head_bytes = std::size_t{waits ? 1U : 32U} << 10,
              .body_bytes = body_bytes,
              .head_time = std::chrono::seconds(waits ? 0 : 10),
              .body_time = std::chrono::seconds(waits ? 0 : 10)}),
        routes(service, http, std::move(key)) {
    engine.refuse_all("the server is ending");
  }

  minimamba::AnyModel model = minimamba::AnyModel::of(minimamba::Mamba<float, minimamba::ReferenceBackend>(
      {.d_model = 2, .n_layer = 1, .vocab_size = 256, .d_state = 1, .d_conv = 2, .expand = 1}));
  minimamba::Tokenizer tokenizer = minimamba::Tokenizer::bytes();
  serve::FoundTemplate chat{serve::ChatTemplate(serve::ChatFormat::chatml, {}, ""), ""};
  serve::Sessions sessions{model, {}};
  serve::Engine engine{model, tokenizer, {.slots = 1}};
  serve::Service service{model, tokenizer, chat, {.body_bytes = body_bytes}, "fuzz", engine, sessions};
  serve::HttpServer http;
  serve::Routes routes;
};

/// A connection: `ours` is the server's end.
struct Sockets {
  Sockets() {
    std::array<int, 2> both{};
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, both.data()) != 0) std::abort();
    ours = both[0];
    client = both[1];
  }
  Sockets(const Sockets&) = delete;
  Sockets& operator=(const Sockets&) = delete;
  ~Sockets() {
    ::close(ours);
    ::close(client);
  }
  /// What has arrived at one of them.
  static std::string received(int socket) {
    std::string text;
    std::array<char, 4096> part{};
    for (ssize_t size = 0; (size = ::recv(socket, part.data(), part.size(), MSG_DONTWAIT)) > 0;) {
      text.append(part.data(), static_cast<std::size_t>(size));
    }
    return text;
  }

  int ours = -1, client = -1;
};

void check_header(std::string_view line) {
  constexpr std::array<std::string_view, 12> known{
      "Allow",      "Cache-Control", "Connection",  "Content-Length",    "Content-Security-Policy", "Content-Type",
      "Keep-Alive", "Location",      "Retry-After", "Transfer-Encoding", "WWW-Authenticate",        "Accept-Ranges"};
  const std::string_view name = line.substr(0, line.find(": "));
  if (name.size() == line.size() || std::find(known.begin(), known.end(), name) == known.end()) std::abort();
}

/// The answers to one request: that it may go on, perhaps, and then the answer.
void check(std::string_view answer) {
  const std::size_t head_end = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.1 ") || head_end == answer.npos) std::abort();
  const int status = std::atoi(std::string(answer.substr(9, 3)).c_str());
  std::string_view head = answer.substr(0, head_end), body = answer.substr(head_end + 4);
  if (status == 100) return check(body);
  if (status < 200 || status > 599) std::abort();
  std::size_t length = 0;
  while (head.find("\r\n") != head.npos) {
    head.remove_prefix(head.find("\r\n") + 2);
    const std::string_view line = head.substr(0, head.find("\r\n"));
    check_header(line);
    if (line.starts_with("Content-Length: ")) length = std::stoul(std::string(line.substr(16)));
  }
  if (body.empty()) return;  // as of HEAD
  if (body.size() != length) std::abort();
  if (status < 400) return;
  if (minimamba::read_json({std::as_bytes(std::span(body)), "answer"}).find("error") == nullptr) std::abort();
}

}  // namespace http_connections

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace http_connections;
  if (size < 2) return 0;
  const bool waits = (data[0] & 1U) != 0, has_key = (data[0] & 2U) != 0;
  static std::array<std::unique_ptr<Server>, 4> servers;
  std::unique_ptr<Server>& server = servers[data[0] % 4];
  if (server == nullptr) server = std::make_unique<Server>(waits, has_key ? "k" : "");

  const Sockets sockets;
  std::string_view sent(reinterpret_cast<const char*>(data) + 1, std::min(size - 1, std::size_t{64} << 10));
  serve::Parked one{.socket = sockets.ours};
  if (waits) {  // everything is there at once, and the client waits for more than it gets: it is too slow
    one.received = sent;
  } else {  // a part comes later, behind which the client sends no more
    one.received = sent.substr(0, (data[0] >> 2U) * std::size_t{16});
    sent.remove_prefix(one.received.size());
    if (::send(sockets.client, sent.data(), sent.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(sent.size())) return 0;
    ::shutdown(sockets.client, SHUT_WR);
  }
  while (!one.closes) {
    if (!serve::Connection::has_head(one.received)) one.received += Sockets::received(sockets.ours);
    if (!serve::Connection::has_head(one.received)) break;  // the listener's to refuse
    one = server->http.answer(one.socket, std::move(one.received));
    const std::string answer = Sockets::received(sockets.client);
    if (!answer.empty()) check(answer);
    if (answer.empty() && !one.closes) std::abort();  // a request that was forgotten
  }
  return 0;
}
