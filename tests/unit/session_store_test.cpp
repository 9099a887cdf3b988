// io/session_store: sessions in memory and in a folder.
#include "minimamba/io/session_store.hpp"

#include <thread>

#include "support/files.hpp"

namespace session_store_test {

using namespace minimamba;
using support::copy_of, support::Folder, support::random_tokens;
using Model = support::Model;
using Store = SessionStore<Model>;

std::shared_ptr<const Model::Cache> state_after(const Model& model, std::size_t tokens) {
  auto state = std::make_shared<Model::Cache>(model.make_cache());
  model.forward_last(random_tokens(tokens, 50), *state);
  return state;
}
bool equal(const Model::Cache& a, const Model::Cache& b) {
  return a.position() == b.position() && identical(copy_of(a.slot(0)), copy_of(b.slot(0)));
}

TEST(SessionStoreOfStates, SwapsSessionsOutAndBackToTheBit) {
  const Folder folder;
  const auto model = support::trained_looking_model<Model>(support::small_config());
  const std::size_t bytes = model.make_cache().state_bytes();
  std::vector<std::shared_ptr<const Model::Cache>> states;
  {
    Store store(model, {.max_bytes = 3 * bytes + 2000, .folder = folder / "sessions" / "of" / "all"});
    for (std::size_t i = 0; i < 6; ++i) {
      states.push_back(state_after(model, i + 1));
      store.put("s-" + std::to_string(i), {states[i], {{"unread", std::to_string(i)}}});
      EXPECT_LE(store.bytes(), 3 * bytes + 2000);
    }
    EXPECT_EQ(store.size(), 3U);
    EXPECT_TRUE(std::filesystem::exists(folder / "sessions" / "of" / "all" / "s-0.state"));
    for (std::size_t i = 0; i < 6; ++i) {
      const auto session = store.get("s-" + std::to_string(i));
      ASSERT_TRUE(session.has_value()) << i;
      EXPECT_TRUE(equal(*session->state, *states[i])) << i;
      EXPECT_EQ(session->sections, (StateSections{{"unread", std::to_string(i)}}));
    }
    store.put("s-0", {states[5], {}});  // in place of the one in the folder
    EXPECT_TRUE(equal(*store.get("s-0")->state, *states[5]));
    EXPECT_TRUE(store.erase("s-1"));
    EXPECT_FALSE(store.erase("s-1"));
    EXPECT_FALSE(store.get("s-1").has_value());
    store.flush();
    EXPECT_EQ(store.size(), 0U);
    EXPECT_EQ(store.bytes(), 0U);
  }
  Store later(model, {.folder = folder / "sessions" / "of" / "all"});
  EXPECT_TRUE(equal(*later.get("s-0")->state, *states[5]));
  EXPECT_TRUE(equal(*later.get("s-4")->state, *states[4]));
}

TEST(SessionStoreOfStates, DropsWhatDoesNotFitWithoutAFolder) {
  const auto model = support::trained_looking_model<Model>(support::small_config());
  const std::size_t bytes = model.make_cache().state_bytes();
  Store store(model, {.max_bytes = 2 * bytes + 1000});
  for (const char* name : {"a", "b"}) store.put(name, {state_after(model, 3), {}});
  EXPECT_TRUE(store.get("a").has_value());  // b is the older one now
  store.put("c", {state_after(model, 4), {}});
  EXPECT_FALSE(store.get("b").has_value());
  EXPECT_TRUE(store.get("a").has_value());
  store.flush();
  EXPECT_EQ(store.size(), 2U);
  Store tiny(model, {.max_bytes = bytes / 2});
  tiny.put("a", {state_after(model, 3), {}});
  EXPECT_FALSE(tiny.get("a").has_value());
}

TEST(SessionStoreOfStates, RefusesNamesThatAreNoFileNamesAndFilesThatAreNoStates) {
  const Folder folder;
  const auto model = support::trained_looking_model<Model>(support::small_config());
  Store store(model, {.folder = folder / "s"});
  for (const std::string& name : {std::string(), std::string("../x"), std::string("a/b"), std::string("a b"),
                                  std::string("a.b"), std::string(65, 'a'), std::string("\xC3\xA4")}) {
    EXPECT_THROW(store.put(name, {state_after(model, 1), {}}), ArgumentError) << name;
    EXPECT_THROW(store.get(name), ArgumentError) << name;
    EXPECT_THROW(store.erase(name), ArgumentError) << name;
  }
  support::write_text(folder / "s" / "bad.state", "MINIMAMBA STATE\nshort");
  EXPECT_THROW(store.get("bad"), FormatError);
  support::write_text(folder / "file", "");
  EXPECT_THROW(Store(model, {.folder = folder / "file" / "below"}), FileError);
}

TEST(SessionStoreOfStates, RefusesWhatItCouldNotWriteLater) {
  const Folder folder;
  const auto model = support::trained_looking_model<Model>(support::small_config());
  auto config = support::small_config();
  config.d_model = 16;
  const auto other = support::trained_looking_model<Model>(config);
  Store store(model, {.folder = folder / "s"});
  store.put("a", {state_after(model, 1), {}});
  EXPECT_THROW(store.put("a", {}), ArgumentError);
  EXPECT_THROW(store.put("a", {state_after(other, 1), {}}), ArgumentError);
  EXPECT_EQ(store.get("a")->state->position(), 1);
  std::filesystem::create_symlink(folder / "s" / "loop.state", folder / "s" / "loop.state");
  EXPECT_THROW(store.get("loop"), Error);
}

TEST(SessionStoreOfStates, IsUsedByManyThreads) {
  const Folder folder;
  const auto model = support::trained_looking_model<Model>(support::small_config());
  Store store(model, {.max_bytes = 2 * model.make_cache().state_bytes() + 1000, .folder = folder / "s"});
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto state = state_after(model, t + 1);
      const std::string name = "thread" + std::to_string(t);
      for (int i = 0; i < 20; ++i) {
        store.put(name, {state, {}});
        const auto session = store.get(name);
        EXPECT_TRUE(session.has_value() && equal(*session->state, *state));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace session_store_test
