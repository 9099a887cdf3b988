// HTTP for serve: cpp-httplib, with limits on connections, on the time and the size of requests, and on slow readers.
#ifndef MINIMAMBA_EXAMPLES_SERVE_HTTP_HPP
#define MINIMAMBA_EXAMPLES_SERVE_HTTP_HPP

#include <httplib.h>

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "serve_api.hpp"
#include "serve_job.hpp"

namespace serve {

struct HttpOptions {
  std::size_t connections = 256;  // that are served at the same time, a thread each
  std::size_t waiting = 64;       // connections that wait for a thread
  std::size_t head_bytes = std::size_t{32} << 10;
  std::size_t body_bytes = std::size_t{8} << 20;
  std::chrono::milliseconds head_time{10'000};   // for the request line and the headers, from the first byte on
  std::chrono::milliseconds body_time{60'000};   // for the body
  std::chrono::milliseconds write_time{20'000};  // in which a client must take some bytes
  std::chrono::milliseconds idle_time{30'000};   // between two requests
};

/// The connection that this thread serves: cpp-httplib reads and writes through it. It gives up on a client that sends
/// too much or too slowly.
class Connection final : public httplib::Stream {
 public:
  Connection(int socket, const HttpOptions& options) : socket_(socket), options_(options) { current_ = this; }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() override { current_ = nullptr; }

  static Connection& current() { return *current_; }

  /// Waits for the first byte of a request. Returns false if there is none: the client is silent or gone.
  bool wait_for_request(const std::atomic<bool>& stops) {
    const auto end = std::chrono::steady_clock::now() + options_.idle_time;
    while (begin_ == end_ && !stops && std::chrono::steady_clock::now() < end) {
      if (wait(POLLIN, std::chrono::milliseconds(500)) && !fill()) return false;
    }
    if (begin_ == end_ || stops) return false;
    in_head_ = true;
    read_ = 0;
    deadline_ = std::chrono::steady_clock::now() + options_.head_time;
    return true;
  }
  void head_has_ended() {
    in_head_ = false;
    read_ = 0;
    deadline_ = std::chrono::steady_clock::now() + options_.body_time;
  }
  /// Whether the client has closed the connection.
  bool is_closed() const {
    char byte = 0;
    const ssize_t size = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
  }
  /// Reads and drops what a refused client is still sending, so that it sees the answer and not a reset.
  void linger() {
    ::shutdown(socket_, SHUT_WR);
    constexpr std::size_t most = std::size_t{256} << 20;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    std::size_t dropped = 0;
    do {
      dropped += end_;
      begin_ = end_ = 0;
    } while (dropped < most && std::chrono::steady_clock::now() < end && wait(POLLIN, std::chrono::seconds(1)) &&
             fill());
  }

  bool closes = false;                       // after this answer
  bool too_large = false, too_slow = false;  // the body

  bool is_readable() const override { return begin_ < end_ || wait(POLLIN, std::chrono::milliseconds(0)); }
  bool is_writable() const override { return !muted_ && !is_closed(); }
  ssize_t read(char* to, std::size_t size) override {
    if (in_head_ && read_ >= options_.head_bytes) return give_up(431, "Request Header Fields Too Large");
    too_large = !in_head_ && read_ > options_.body_bytes + options_.body_bytes / 8 + 4096;  // with the sizes of chunks
    if (too_large) return -1;
    if (begin_ == end_) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now());
      if (left.count() <= 0 || !wait(POLLIN, left)) return give_up(408, "Request Timeout");
      if (!fill()) return 0;
    }
    const std::size_t some = std::min(size, end_ - begin_);
    std::copy_n(buffer_.begin() + static_cast<std::ptrdiff_t>(begin_), some, to);
    begin_ += some;
    read_ += some;
    return static_cast<ssize_t>(some);
  }
  ssize_t write(const char* from, std::size_t size) override {
    if (muted_) return -1;
    if (!wait(POLLOUT, options_.write_time)) {
      muted_ = closes = true;  // the client does not read
      return -1;
    }
    const ssize_t sent = ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return sent;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;  // cpp-httplib tries again
    muted_ = closes = true;
    return -1;
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override { address(&::getpeername, ip, port); }
  void get_local_ip_and_port(std::string& ip, int& port) const override { address(&::getsockname, ip, port); }
  socket_t socket() const override { return socket_; }

 private:
  bool wait(short event, std::chrono::milliseconds time) const {
    pollfd one{.fd = socket_, .events = event, .revents = 0};
    return ::poll(&one, 1, static_cast<int>(time.count())) > 0;
  }
  bool fill() {
    const ssize_t size = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
    begin_ = 0;
    end_ = size > 0 ? static_cast<std::size_t>(size) : 0;
    return size > 0;
  }
  /// Answers at once, since cpp-httplib has no request to answer yet, and says nothing more.
  ssize_t give_up(int status, const std::string& reason) {
    too_slow = status == 408;
    if (!in_head_) return -1;  // the body is read by a handler, which answers
    if (!muted_ && read_ > 0) send_refusal(socket_, status, reason);
    muted_ = closes = true;
    return -1;
  }
  void address(int (*of)(int, sockaddr*, socklen_t*), std::string& ip, int& port) const {
    sockaddr_storage storage{};
    socklen_t size = sizeof(storage);
    std::array<char, NI_MAXHOST> host{};
    std::array<char, NI_MAXSERV> service{};
    auto* const place = reinterpret_cast<sockaddr*>(&storage);
    if (of(socket_, place, &size) != 0) return;
    const int flags = NI_NUMERICHOST | NI_NUMERICSERV;
    if (::getnameinfo(place, size, host.data(), host.size(), service.data(), service.size(), flags) != 0) return;
    ip = host.data();
    port = std::atoi(service.data());
  }

 public:
  static void send_refusal(int socket, int status, const std::string& reason) {
    const std::string body = ApiError(status, reason).json();
    const std::string text =
        "HTTP/1.1 " + std::to_string(status) + " " + reason +
        "\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    static_cast<void>(::send(socket, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  }

 private:
  inline static thread_local Connection* current_ = nullptr;

  int socket_;
  const HttpOptions& options_;
  std::array<char, std::size_t{16} << 10> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // in the buffer
  std::size_t read_ = 0;             // bytes of the head or the body
  bool in_head_ = true, muted_ = false;
  std::chrono::steady_clock::time_point deadline_;
};

/// The threads that serve connections. A connection beyond those that may wait is refused by the thread that brings it.
class Workers final : public httplib::TaskQueue {
 public:
  explicit Workers(const HttpOptions& options) : options_(options) {
    for (std::size_t i = 0; i < options.connections; ++i) threads_.emplace_back([this] { work(); });
  }

  void enqueue(std::function<void()> serve_connection) override {
    {
      const std::lock_guard lock(mutex_);
      if (idle_ > tasks_.size() || tasks_.size() < options_.waiting) {
        tasks_.push_back(std::move(serve_connection));
        work_.notify_one();
        return;
      }
    }
    refuses = true;
    serve_connection();
    refuses = false;
  }
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  inline static thread_local bool refuses = false;

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      work_.wait(lock, [&] { return !tasks_.empty() || ends_; });
      --idle_;
      if (tasks_.empty()) return;
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const HttpOptions& options_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<std::function<void()>> tasks_;
  std::size_t idle_ = 0;
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

/// The server, whose connections are Connections.
class HttpServer final : public httplib::Server {
 public:
  explicit HttpServer(const HttpOptions& options) : options_(options) {
    new_task_queue = [this] { return new Workers(options_); };
    set_tcp_nodelay(true);
    set_keep_alive_max_count(100'000);
    set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(options.idle_time).count());
  }

  /// Listens on a port, of its choice if it is 0, and returns it; negative if that is not possible.
  int bind(const std::string& host, int port) {
    const int bound = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
    if (bound >= 0) ::listen(svr_sock_, 512);  // cpp-httplib's queue of 5 makes clients wait for a second
    return bound;
  }
  /// Ends idle connections, and the others after their answers; new ones are refused.
  void drain() { drains_ = true; }
  std::size_t open_connections() const { return open_; }

  std::atomic<std::uint64_t> requests = 0, refused = 0;
  double connection_seconds() const { return seconds_; }  // of processor time

 private:
  bool process_and_close_socket(socket_t socket) override {
    if (Workers::refuses || drains_) {
      ++refused;
      Connection::send_refusal(socket, drains_ ? 503 : 429, drains_ ? "The server is ending" : "Too many connections");
    } else {
      ++open_;
      serve_connection(socket);
      --open_;
    }
    ::shutdown(socket, SHUT_RDWR);
    ::close(socket);
    return true;
  }

  void serve_connection(socket_t socket) {
    Connection connection(socket, options_);
    const double begin = thread_seconds();
    double before = begin;
    while (connection.wait_for_request(drains_)) {
      bool closed = false;
      ++requests;
      const bool done = process_request(connection, false, closed, [&](httplib::Request& request) {
        connection.head_has_ended();
        request.headers.erase("Accept-Encoding");  // answers are not compressed,
        request.ranges.clear();                    // and are sent whole
        const bool has_body = request.has_header("Transfer-Encoding") || request.has_header("Content-Length");
        if (has_body && request.method != "POST") connection.closes = true;  // as it is not read
      });
      const double now = thread_seconds();
      add(now - before);
      before = now;
      if (connection.closes) connection.linger();
      if (!done || closed || connection.closes) break;
    }
    add(thread_seconds() - before);
  }
  void add(double seconds) {
    double before = seconds_;
    while (!seconds_.compare_exchange_weak(before, before + seconds)) continue;
  }

  const HttpOptions options_;
  std::atomic<bool> drains_ = false;
  std::atomic<std::size_t> open_ = 0;
  std::atomic<double> seconds_ = 0;
};

}  // namespace serve

#endif
