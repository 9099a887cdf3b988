// The sessions of serve: conversations that clients go on with by an id.
#ifndef MINIMAMBA_EXAMPLES_SERVE_SESSIONS_HPP
#define MINIMAMBA_EXAMPLES_SERVE_SESSIONS_HPP

#include <minimamba/io/any_model.hpp>
#include <minimamba/io/session_store.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "serve_api.hpp"

namespace serve {

using minimamba::AnyModel;

/// A conversation: what the model remembers of it, and what it has not read yet.
struct Session {
  std::shared_ptr<const AnyModel::Cache> state = nullptr;  // null: nothing was read
  std::vector<std::int32_t> unread;                        // the next prompt begins with it
  std::vector<std::int32_t> recent;                        // read last, for penalties
  std::int64_t tokens = 0;                                 // read and unread
  bool answer_ended = false;                               // whether `unread` is the token that ends an answer
};

/// The sessions, in a SessionStore. A request takes its session, so that no two go on from the same state. Safe from
/// any thread.
class Sessions {
 public:
  Sessions(const AnyModel& model, minimamba::SessionStoreOptions options) : store_(model, std::move(options)) {}

  /// Takes a session: an empty one if there is none with that id. Throws ApiError if it is in use, or was dropped.
  Session take(const std::string& id) {
    const std::lock_guard lock(mutex_);
    if (in_use_.contains(id)) {
      throw ApiError(409, "session " + id + " is in use by another request", "session", "session_in_use");
    }
    Session session;
    if (auto kept = get(id)) {
      session.unread = ids(kept->sections["unread"]);
      session.recent = ids(kept->sections["recent"]);
      session.answer_ended = kept->sections["answer_ended"] == "1";
      session.tokens = kept->state->position() + std::ssize(session.unread);
      session.state = std::move(kept->state);
    } else if (known_.contains(id)) {  // rather than going on as if nothing had been said
      throw ApiError(404, "session " + id + " was dropped, as sessions need more memory than there is", "session",
                     "session_dropped");
    }
    in_use_.insert(id);
    return session;
  }

  /// Ends the use of a session that was not changed.
  void give_back(const std::string& id) {
    const std::lock_guard lock(mutex_);
    in_use_.erase(id);
    erased_.erase(id);
  }
  /// The same for one that was. If it cannot be written, as the disk is full, it is dropped.
  void put(const std::string& id, const Session& session) {
    const std::lock_guard lock(mutex_);
    in_use_.erase(id);
    if (erased_.erase(id) > 0) return;
    constexpr std::size_t most_known = 100'000;
    if (known_.size() >= most_known) known_.erase(known_.begin());
    known_.insert(id);
    try {
      store_.put(id, {session.state,
                      {{"unread", bytes(session.unread)},
                       {"recent", bytes(session.recent)},
                       {"answer_ended", session.answer_ended ? "1" : "0"}}});
    } catch (const minimamba::Error&) {
      store_.erase(id);
    }
  }

  /// Returns whether there was a session with that id.
  bool erase(const std::string& id) {
    const std::lock_guard lock(mutex_);
    const bool known = known_.erase(id) > 0, in_use = in_use_.contains(id);
    if (in_use) erased_.insert(id);
    return store_.erase(id) || known || in_use;
  }

  std::size_t size() const { return store_.size(); }  // in memory
  std::size_t bytes() const { return store_.bytes(); }
  /// Writes all to the folder, if there is one, at the end of the program.
  void flush() { store_.flush(); }

 private:
  std::optional<minimamba::SessionStore<AnyModel>::Session> get(const std::string& id) {
    try {
      return store_.get(id);
    } catch (const minimamba::Error&) {  // a damaged file, or one of another model
      throw ApiError(500, "session " + id + " cannot be read: delete it", "session", "session_unreadable");
    }
  }
  static std::string bytes(std::span<const std::int32_t> tokens) {
    return {reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()};
  }
  static std::vector<std::int32_t> ids(const std::string& text) {
    std::vector<std::int32_t> result(text.size() / sizeof(std::int32_t));
    if (!result.empty()) std::memcpy(result.data(), text.data(), result.size() * sizeof(std::int32_t));
    return result;
  }

  minimamba::SessionStore<AnyModel> store_;
  std::mutex mutex_;
  std::set<std::string> in_use_;
  std::set<std::string> erased_;  // while they were in use
  std::set<std::string> known_;   // were put
};

/// A session that a request has taken, until the request ends. Without an id, it is none.
class TakenSession {
 public:
  TakenSession(Sessions& sessions, std::string id) : sessions_(sessions), id_(std::move(id)) {
    if (!id_.empty()) session_ = sessions_.take(id_);
  }
  TakenSession(const TakenSession&) = delete;
  TakenSession& operator=(const TakenSession&) = delete;
  ~TakenSession() {
    if (!id_.empty() && !done_) sessions_.give_back(id_);
  }

  const std::string& id() const { return id_; }
  const Session& session() const { return session_; }
  void put(Session session) {
    session_ = std::move(session);
    done_ = true;
    sessions_.put(id_, session_);
  }

 private:
  Sessions& sessions_;
  std::string id_;
  Session session_;
  bool done_ = false;
};

}  // namespace serve

#endif
