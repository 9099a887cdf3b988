// HTTP for serve: cpp-httplib reads requests and writes answers, on connections that a Listener hands to threads.
#ifndef MINIMAMBA_EXAMPLES_SERVE_HTTP_HPP
#define MINIMAMBA_EXAMPLES_SERVE_HTTP_HPP

#include "serve_connection.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "serve_job.hpp"
#include "serve_listener.hpp"

namespace serve {

/// The threads that answer requests.
class Workers {
 public:
  using Serve = std::function<void(Parked&&)>;

  /// `crowded` becomes true while no thread is free.
  Workers(const HttpOptions& options, std::atomic<bool>& crowded, Serve serve)
      : options_(options), crowded_(crowded), serve_(std::move(serve)) {
    try {
      for (std::size_t i = 0; i < options.connections; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
      join();
      throw;
    }
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;
  ~Workers() { join(); }

  /// Takes the connection; false if too many wait for a thread.
  bool offer(Parked& one) {
    const std::lock_guard lock(mutex_);
    if (taken() >= options_.connections + options_.waiting) return false;
    waiting_.push_back(std::move(one));
    crowded_ = taken() >= options_.connections;
    work_.notify_one();
    return true;
  }

 private:
  void join() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  std::size_t taken() const { return busy_ + waiting_.size(); }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [&] { return !waiting_.empty() || ends_; });
      if (waiting_.empty()) return;
      ++busy_;
      Parked one = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      serve_(std::move(one));
      lock.lock();
      --busy_;
      crowded_ = taken() >= options_.connections;
    }
  }

  const HttpOptions& options_;
  std::atomic<bool>& crowded_;
  const Serve serve_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Parked> waiting_;
  std::size_t busy_ = 0;  // threads
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

/// The server, whose connections are Connections.
class HttpServer final : public httplib::Server {
 public:
  explicit HttpServer(const HttpOptions& options)
      : options_(options), listener_(options_, [this](Parked& one) { return offer(one); }) {
    set_tcp_nodelay(true);
    set_keep_alive_max_count(100'000);
    set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(options.idle_time).count());
    set_socket_options([](socket_t socket) {  // cpp-httplib's would let a second server share the port
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
  }
  ~HttpServer() override { end(); }

  /// Listens on a port, of its choice if it is 0, and returns it; negative if that is not possible.
  int bind(const std::string& host, int port) {
    const int bound = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
    if (bound >= 0) ::listen(svr_sock_, 512);  // cpp-httplib's queue of 5 makes clients wait for a second
    return bound;
  }
  /// Answers requests from now on.
  void begin() {
    workers_ = std::make_unique<Workers>(options_, crowded_, [this](Parked&& one) { serve(std::move(one)); });
    thread_ = std::thread([this] { listener_.run(svr_sock_); });
  }
  /// Closes silent connections, and the others after their answers; new ones are refused.
  void drain() { listener_.drain(); }
  /// Gives answers that are being written a moment more, and closes all connections.
  void end() {
    if (!thread_.joinable()) return;
    listener_.drain();
    for (const auto end = Clock::now() + std::chrono::seconds(2); answering() > 0 && Clock::now() < end;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    abort();
    workers_.reset();
    listener_.end();
    thread_.join();
    ::close(svr_sock_.exchange(INVALID_SOCKET));
  }

  /// Answers a request on a connection of which some bytes were received already. Returns the connection with what was
  /// received after them.
  Parked answer(int socket, std::string received) {
    Connection connection(socket, std::move(received), options_, crowded_);
    bool closed = false;
    ++requests;
    const bool done = process_request(connection, false, closed, [&](httplib::Request& request) {
      connection.head_has_ended();
      request.headers.erase("Accept-Encoding");  // answers are not compressed,
      request.ranges.clear();                    // and are sent whole
      const bool has_body = request.has_header("Transfer-Encoding") || request.has_header("Content-Length");
      if (!has_body || request.method == "POST") return;
      connection.closes = true;  // as the body is not read
      for (const char* name : {"Transfer-Encoding", "Content-Length", "Content-Encoding"}) request.headers.erase(name);
    });
    Parked next{.socket = socket, .closes = !done || closed || connection.closes};
    if (!next.closes) next.received = connection.rest();
    return next;
  }

  std::size_t answering() const { return answering_; }  // connections, with those that wait for a thread
  std::size_t open_connections() const { return listener_.open; }
  std::uint64_t refused() const { return listener_.refused; }
  double connection_seconds() const { return seconds_ + listener_.seconds; }  // of processor time

  std::atomic<std::uint64_t> requests = 0;

 private:
  bool offer(Parked& one) {
    ++answering_;
    if (workers_->offer(one)) return true;
    --answering_;
    return false;
  }

  /// Answers a request, and gives the connection back to the listener.
  void serve(Parked&& one) {
    const double begin = thread_seconds();
    const int socket = one.socket;
    {
      const std::lock_guard lock(mutex_);
      if (aborts_) ::shutdown(socket, SHUT_RDWR);
      served_.insert(socket);
    }
    Parked next{.socket = socket, .closes = true};
    try {
      next = answer(socket, std::move(one.received));
    } catch (...) {  // such as a lack of memory: this client's answer ends here, and the others go on
    }
    {
      const std::lock_guard lock(mutex_);
      served_.erase(socket);
    }
    listener_.park(std::move(next));
    --answering_;
    double before = seconds_;
    const double used = thread_seconds() - begin;
    while (!seconds_.compare_exchange_weak(before, before + used)) continue;
  }
  /// Ends what is being read and written.
  void abort() {
    const std::lock_guard lock(mutex_);
    aborts_ = true;
    for (const int socket : served_) ::shutdown(socket, SHUT_RDWR);
  }

  const HttpOptions options_;
  Listener listener_;
  std::atomic<bool> crowded_ = false;  // no thread is free
  std::unique_ptr<Workers> workers_;
  std::thread thread_;
  std::atomic<std::size_t> answering_ = 0;
  std::atomic<double> seconds_ = 0;
  std::mutex mutex_;
  std::set<int> served_;  // sockets
  bool aborts_ = false;
};

}  // namespace serve

#endif
