// A connection of serve while a thread answers a request on it, with limits on the time and the size of the request,
// and on slow readers.
#ifndef MINIMAMBA_EXAMPLES_SERVE_CONNECTION_HPP
#define MINIMAMBA_EXAMPLES_SERVE_CONNECTION_HPP

#include "serve_api.hpp"  // with Eigen, whose names a macro of <resolv.h> changes: clang refuses them after the next

#include <httplib.h>

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "serve_job.hpp"

namespace serve {

struct HttpOptions {
  std::size_t connections = 256;  // that are answered at the same time, a thread each
  std::size_t waiting = 64;       // requests that wait for a thread
  std::size_t silent = 512;       // connections between two requests, or whose head is not there yet: no thread
  std::size_t head_bytes = std::size_t{32} << 10;
  std::size_t body_bytes = std::size_t{8} << 20;
  std::chrono::milliseconds head_time{10'000};    // for the request line and the headers, from the first byte on
  std::chrono::milliseconds body_time{60'000};    // for the body
  std::chrono::milliseconds crowded_time{5'000};  // for the body, while all threads are taken
  std::chrono::milliseconds write_time{20'000};   // in which a client must take some bytes
  std::chrono::milliseconds idle_time{30'000};    // between two requests
  std::chrono::milliseconds linger_time{5'000};   // for what a refused client is still sending
};

/// The connection that this thread answers: cpp-httplib reads and writes through it. It gives up on a client that sends
/// too much or too slowly.
class Connection final : public httplib::Stream {
 public:
  /// `received` was read already; `crowded` says whether others wait for a thread.
  Connection(int socket, std::string received, const HttpOptions& options, const std::atomic<bool>& crowded)
      : socket_(socket), options_(options), crowded_(crowded), received_(std::move(received)) {
    current_ = this;
    begin(options_.head_time);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() override { current_ = nullptr; }

  static Connection& current() { return *current_; }

  void head_has_ended() {
    in_head_ = false;
    begin(options_.body_time);
  }
  /// Whether the client has closed the connection, or does not send any more.
  bool is_closed() const {
#if defined(POLLRDHUP)
    pollfd one{.fd = socket_, .events = POLLRDHUP, .revents = 0};  // seen behind bytes that were not read, too
    return ::poll(&one, 1, 0) > 0;
#else
    char byte = 0;
    const ssize_t size = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
#endif
  }
  /// What was read of the next request.
  std::string rest() { return received_.substr(at_); }

  bool closes = false;                       // after this answer
  bool too_large = false, too_slow = false;  // the body
  bool body_was_read = false;                // so that the next request can follow

  bool is_readable() const override { return at_ < received_.size() || wait(POLLIN, std::chrono::milliseconds(0)); }
  bool is_writable() const override { return !muted_ && !is_closed(); }
  ssize_t read(char* to, std::size_t size) override {
    if (in_head_ && read_ >= options_.head_bytes) return give_up(431, "Request Header Fields Too Large");
    too_large = !in_head_ && read_ > options_.body_bytes + options_.body_bytes / 8 + 4096;  // with the sizes of chunks
    if (too_large) return -1;
    if (at_ == received_.size()) {
      if (!wait_for_bytes()) return give_up(408, "Request Timeout");
      if (!fill()) return 0;
    }
    const std::size_t some = std::min(size, received_.size() - at_);
    std::copy_n(received_.data() + at_, some, to);
    at_ += some;
    read_ += some;
    return static_cast<ssize_t>(some);
  }
  ssize_t write(const char* from, std::size_t size) override {
    if (muted_) return -1;
    ssize_t sent = ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && is_temporary(errno)) {
      if (wait(POLLOUT, options_.write_time)) return 0;  // cpp-httplib tries again
    }
    if (sent < 0) muted_ = closes = true;  // the client does not read, or is gone
    return sent;
  }
  void get_remote_ip_and_port(std::string&, int&) const override {}  // which are not used
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return socket_; }

  /// Whether the head of a request is complete in these bytes, of which `known` were looked at before.
  static bool has_head(std::string_view received, std::size_t known = 0) {
    const std::size_t from = known - std::min<std::size_t>(known, 2);
    return received.find("\n\r\n", from) != received.npos ||
           received.find("\n\n", from) != received.npos;  // which is answered with 400
  }

  static bool is_temporary(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

  static void send_refusal(int socket, int status, const std::string& reason) {
    const std::string body = ApiError(status, reason).json();
    const std::string text =
        "HTTP/1.1 " + std::to_string(status) + " " + reason +
        "\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    static_cast<void>(::send(socket, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  }

 private:
  void begin(std::chrono::milliseconds time) {
    read_ = 0;
    begin_ = Clock::now();
    time_ = time;
  }
  /// Waits for an event, whatever signals come meanwhile. Returns whether it came in this time.
  bool wait(short event, std::chrono::milliseconds time) const {
    const auto end = Clock::now() + time;
    while (true) {
      pollfd one{.fd = socket_, .events = event, .revents = 0};
      const int count = ::poll(&one, 1, static_cast<int>(time.count()));
      if (count >= 0 || errno != EINTR) return count > 0;
      time = std::max(std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()), std::chrono::milliseconds(0));
    }
  }
  /// Waits until there is something to read. Others may come to wait for this thread meanwhile.
  bool wait_for_bytes() const {
    while (true) {
      const auto time = !in_head_ && crowded_ ? std::min(time_, options_.crowded_time) : time_;
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(begin_ + time - Clock::now());
      if (left.count() <= 0) return false;
      if (wait(POLLIN, std::min(left, std::chrono::milliseconds(500)))) return true;
    }
  }
  /// Reads what is there. Returns false if the client is gone.
  bool fill() {
    constexpr std::size_t most = std::size_t{64} << 10;
    received_.resize(most);
    ssize_t size = -1;
    do {
      size = ::recv(socket_, received_.data(), most, 0);
    } while (size < 0 && errno == EINTR);
    at_ = 0;
    received_.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return size > 0;
  }
  /// Answers at once, since cpp-httplib has no request to answer yet, and says nothing more.
  ssize_t give_up(int status, const std::string& reason) {
    too_slow = status == 408;
    if (!in_head_) return -1;  // the body is read by a handler, which answers
    if (!muted_) send_refusal(socket_, status, reason);
    muted_ = closes = true;
    return -1;
  }

  inline static thread_local Connection* current_ = nullptr;

  int socket_;
  const HttpOptions& options_;
  const std::atomic<bool>& crowded_;
  std::string received_;
  std::size_t at_ = 0;    // in it
  std::size_t read_ = 0;  // bytes of the head or the body
  bool in_head_ = true, muted_ = false;
  Clock::time_point begin_;         // of the head or the body,
  std::chrono::milliseconds time_;  // and the time for it
};

}  // namespace serve

#endif
