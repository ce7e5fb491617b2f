#include "thinwire/launch/node_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::launch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using thinwire::testing::error_of;

TEST(NodeList, ExpandsWhatSlurmWrites) {
  EXPECT_THAT(expand_node_list("node7"), ElementsAre("node7"));
  EXPECT_THAT(expand_node_list("a,b-1,c.d"), ElementsAre("a", "b-1", "c.d"));
  EXPECT_THAT(expand_node_list("node[01-03,7]"),
              ElementsAre("node01", "node02", "node03", "node7"));
  EXPECT_THAT(expand_node_list("node[01-02],login,gpu[5]"),
              ElementsAre("node01", "node02", "login", "gpu5"));
  EXPECT_THAT(expand_node_list("n[08-11]"), ElementsAre("n08", "n09", "n10", "n11"));
  EXPECT_THAT(expand_node_list("n[8-11]"), ElementsAre("n8", "n9", "n10", "n11"));
  EXPECT_THAT(expand_node_list("n[098-101]x"), ElementsAre("n098x", "n099x", "n100x", "n101x"));
  EXPECT_THAT(expand_node_list("r[1-2]n[1,3]"), ElementsAre("r1n1", "r1n3", "r2n1", "r2n3"));
}

TEST(NodeList, RefusesWhatItIsNot) {
  for (const char* text : {"", ",", "a,", "n[", "n]", "n[]", "n[1", "n[1]]", "n[[1]]", "n[1,]",
                           "n[a]", "n[1-]", "n[-1]", "n[1-2-3]", "n[9999999999]"}) {
    const std::string error = error_of([&] { expand_node_list(text); });
    EXPECT_THAT(error, HasSubstr(concat("bad Slurm node list '", text, "': ")));
  }
  EXPECT_THAT(error_of([] { expand_node_list("n[3-1]"); }), HasSubstr("'3-1' runs backwards"));
}

TEST(NodeList, RefusesToGrowWithoutBound) {
  for (const char* text :
       {"n[1-65537]", "n[0-999999999]", "n[1-999]m[1-999]", "n[1-40000],m[1-40000]"}) {
    EXPECT_THAT(error_of([&] { expand_node_list(text); }), HasSubstr("more than 65536 hosts"));
  }
  EXPECT_EQ(expand_node_list("n[1-65536]").size(), 65536u);
}

TEST(TasksPerNode, ExpandsRepetitions) {
  EXPECT_THAT(expand_tasks_per_node("2"), ElementsAre(2));
  EXPECT_THAT(expand_tasks_per_node("2(x3),1"), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(expand_tasks_per_node("4,2(x2)"), ElementsAre(4, 2, 2));
}

TEST(TasksPerNode, RefusesWhatItIsNot) {
  for (const char* text : {"", ",", "2,", "x", "2(x", "2(x3", "2(x)", "2(3)", "2(x70000)"}) {
    EXPECT_THAT(error_of([&] { expand_tasks_per_node(text); }),
                HasSubstr(concat("list of tasks per node '", text, "': ")));
  }
}

}  // namespace
}  // namespace thinwire::launch
