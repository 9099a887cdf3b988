// The thread of serve that holds the connections on which nothing is answered: it accepts them, waits for the heads of
// their requests, and hands those to threads. So a client that is silent, or slow to say what it wants, costs no
// thread.
#ifndef MINIMAMBA_EXAMPLES_SERVE_LISTENER_HPP
#define MINIMAMBA_EXAMPLES_SERVE_LISTENER_HPP

#include <fcntl.h>
#include <poll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "serve_connection.hpp"
#include "serve_job.hpp"

namespace serve {

/// A connection on which nothing is answered.
struct Parked {
  int socket = -1;
  std::string received = {};               // of the head of the next request
  Clock::time_point since = Clock::now();  // silent, or sending the head
  bool closes = false;                     // it was answered for the last time: what comes is dropped
};

class Listener {
 public:
  /// Takes a connection with the head of a request; false if there is no thread for it, and too many wait for one.
  using Offer = std::function<bool(Parked&)>;

  Listener(const HttpOptions& options, Offer offer) : options_(options), offer_(std::move(offer)) {
    if (::pipe(wake_) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
    for (const int end : wake_) set_nonblocking(end);
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener() {
    for (const int end : wake_) ::close(end);
  }

  /// Runs until end(), and closes its connections then.
  void run(int listening) {
    set_nonblocking(listening);
    double before = thread_seconds();
    while (!ends_) {
      take_returned();
      wait(listening);
      std::erase_if(parked_, [](const Parked& one) { return one.socket < 0; });
      const double now = thread_seconds();
      seconds = seconds + (now - before);
      before = now;
    }
    take_returned();
    for (Parked& one : parked_) close(one);
    parked_.clear();
  }
  /// Gives a connection back that was answered. Safe from any thread, as the next.
  void park(Parked one) {
    if (one.closes) ::shutdown(one.socket, SHUT_WR);
    one.since = Clock::now();
    {
      const std::lock_guard lock(mutex_);
      returned_.push_back(std::move(one));
    }
    wake();
  }
  /// Closes silent connections from now on, and refuses new ones.
  void drain() {
    drains_ = true;
    wake();
  }
  void end() {
    ends_ = true;
    wake();
  }

  std::atomic<std::size_t> open = 0;  // connections, with those that are answered
  std::atomic<std::uint64_t> refused = 0;
  std::atomic<double> seconds = 0;  // of processor time

 private:
  static void set_nonblocking(int file) { ::fcntl(file, F_SETFL, ::fcntl(file, F_GETFL) | O_NONBLOCK); }
  void wake() {
    const char byte = 0;
    static_cast<void>(!::write(wake_[1], &byte, 1));  // a full pipe wakes it too
  }
  void close(Parked& one) {
    ::close(std::exchange(one.socket, -1));
    --open;
  }

  /// Takes the connections that were given back, some with the head of the next request.
  void take_returned() {
    std::vector<Parked> returned;
    {
      const std::lock_guard lock(mutex_);
      returned.swap(returned_);
    }
    for (Parked& one : returned) {
      if (!one.closes && !one.received.empty()) look_at(one, 0);
      if (one.socket >= 0) parked_.push_back(std::move(one));
    }
    while (parked_.size() > options_.silent) close_oldest();
  }

  void wait(int listening) {
    polled_.clear();
    polled_.push_back({.fd = wake_[0], .events = POLLIN, .revents = 0});
    polled_.push_back({.fd = is_full_ ? -1 : listening, .events = POLLIN, .revents = 0});
    for (const Parked& one : parked_) polled_.push_back({.fd = one.socket, .events = POLLIN, .revents = 0});
    if (::poll(polled_.data(), polled_.size(), is_full_ ? 20 : 250) < 0) return;
    is_full_ = false;
    if (polled_[0].revents != 0) {
      while (::read(wake_[0], buffer_.data(), buffer_.size()) > 0) continue;
    }
    const auto now = Clock::now();
    for (std::size_t i = 0; i < parked_.size(); ++i) {
      if (polled_[i + 2].revents != 0) receive(parked_[i], now);
      if (parked_[i].socket >= 0) check_time(parked_[i], now);
    }
    if (polled_[1].revents != 0) accept(listening);
  }

  void receive(Parked& one, Clock::time_point now) {
    ssize_t size = 0;
    for (int i = 0; i < 16; ++i) {  // of a client that was refused, as much as there is
      size = ::recv(one.socket, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
      if (!one.closes || size <= 0) break;
    }
    if (size < 0 && Connection::is_temporary(errno)) return;
    if (size == 0 && !one.closes && !one.received.empty()) return refuse(one, 400, "Bad Request");
    if (size <= 0) return close(one);
    if (one.closes) return;
    if (one.received.empty()) one.since = now;
    const std::size_t before = one.received.size();
    one.received.append(buffer_.data(), static_cast<std::size_t>(size));
    look_at(one, before);
  }
  /// Hands the connection on if the head is complete. `known` bytes were looked at before.
  void look_at(Parked& one, std::size_t known) {
    const bool complete = Connection::has_head(one.received, known);
    if (!complete && one.received.size() > options_.head_bytes) {
      return refuse(one, 431, "Request Header Fields Too Large");
    }
    if (!complete) return;
    if (drains_) return refuse(one, 503, "The server is ending");
    if (!offer_(one)) return refuse(one, 429, "Too many requests");
    one.socket = -1;  // it is another thread's
  }
  void check_time(Parked& one, Clock::time_point now) {
    const auto silent = now - one.since;
    if (one.closes) {
      if (silent > options_.linger_time) close(one);
    } else if (one.received.empty()) {
      if (drains_ || silent > options_.idle_time) close(one);
    } else if (silent > options_.head_time) {
      refuse(one, 408, "Request Timeout");
    }
  }
  /// Answers with an error. What the client is still sending is read, so that it sees the answer and not a reset.
  void refuse(Parked& one, int status, const std::string& reason) {
    refused += status == 429 || status == 503 ? 1U : 0U;
    Connection::send_refusal(one.socket, status, reason);
    ::shutdown(one.socket, SHUT_WR);
    one = {.socket = one.socket, .closes = true};
  }

  void accept(int listening) {
    for (int i = 0; i < 64; ++i) {
      const int socket = ::accept(listening, nullptr, nullptr);
      if (socket < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (socket < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
        is_full_ = true;
        return close_oldest();
      }
      if (socket < 0) continue;  // the client is gone already
      ++open;
      Parked one{.socket = socket};
      if (drains_) refuse(one, 503, "The server is ending");
      if (parked_.size() >= options_.silent || socket >= FD_SETSIZE) close_oldest();  // cpp-httplib's limit
      if (socket >= FD_SETSIZE) refuse(one, 429, "Too many connections");
      parked_.push_back(std::move(one));
    }
  }
  /// Closes a connection that was answered for the last time, or the one that has been silent for the longest time.
  void close_oldest() {
    const auto rank = [](const Parked& one) { return std::pair(one.socket < 0 ? 2 : one.closes ? 0 : 1, one.since); };
    const auto oldest = std::min_element(parked_.begin(), parked_.end(),
                                         [&](const Parked& a, const Parked& b) { return rank(a) < rank(b); });
    if (oldest == parked_.end() || oldest->socket < 0) return;
    close(*oldest);
    parked_.erase(oldest);
  }

  const HttpOptions& options_;
  const Offer offer_;
  int wake_[2] = {-1, -1};
  std::atomic<bool> drains_ = false, ends_ = false;
  bool is_full_ = false;  // there is no file descriptor for another connection
  std::vector<Parked> parked_;
  std::vector<pollfd> polled_;
  std::vector<char> buffer_ = std::vector<char>(std::size_t{64} << 10);
  std::mutex mutex_;
  std::vector<Parked> returned_;
};

}  // namespace serve

#endif
