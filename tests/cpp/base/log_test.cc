// The log's lines, and the file they go to. tests/test_log.py has what a whole process does.

#include "base/log.h"

#include <gtest/gtest.h>
#include <regex.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/environment.h"

namespace jaxcoll {
namespace {

class LogTest : public testing::Test {
 protected:
  LogTest() {
    char name[] = "/tmp/jaxcoll-log-XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~LogTest() override {
    Configure(before_);
    [[maybe_unused]] const int code = std::system(("rm -r " + folder_).c_str());
  }

  std::string Text(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

  std::string folder_;

 private:
  const Settings before_ = CurrentSettings();
};

// By POSIX: std::regex draws warnings from GCC 12 under a sanitizer.
bool IsLine(const std::string& line) {
  regex_t pattern;
  regcomp(&pattern,
          "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z jaxcoll WARNING "
          "[^ ]+:[0-9]+( process [0-9]+/[0-9]+)?: .*$",
          REG_EXTENDED | REG_NOSUB);
  const bool matches = regexec(&pattern, line.c_str(), 0, nullptr, 0) == 0;
  regfree(&pattern);
  return matches;
}

TEST_F(LogTest, EachLineOfAMessageHasTheHead) {
  std::istringstream lines(LogLines("WARNING", "first\nsecond\n"));
  std::string first, second, none;
  ASSERT_TRUE(std::getline(lines, first) && std::getline(lines, second));
  EXPECT_FALSE(std::getline(lines, none));
  EXPECT_TRUE(IsLine(first)) << first;
  EXPECT_TRUE(IsLine(second)) << second;
  EXPECT_TRUE(first.ends_with(": first") && second.ends_with(": second"));
  EXPECT_NE(first.find(":" + std::to_string(getpid())), std::string::npos);
}

TEST_F(LogTest, TextOfAPeerCannotSteerATerminal) {
  EXPECT_TRUE(LogLines("WARNING", "a\x1b[2Jb\x7f\rc").ends_with(": a?[2Jb??c\n"));
}

TEST_F(LogTest, AnEmptyMessageIsALine) { EXPECT_TRUE(LogLines("WARNING", "").ends_with(": \n")); }

TEST_F(LogTest, LongMessagesAreNotCut) {
  Configure({.log_file = folder_ + "/log"});
  const std::string text(5000, 'x');
  Log(LogLevel::kWarning, "%s", text.c_str());
  EXPECT_NE(Text(folder_ + "/log").find(": " + text + "\n"), std::string::npos);
}

TEST_F(LogTest, OnlyWhatTheLevelAsksForIsWritten) {
  Configure({.log = LogLevel::kInfo, .log_file = folder_ + "/log"});
  Log(LogLevel::kDebug, "silent");
  EXPECT_EQ(Text(folder_ + "/log"), "");
  Log(LogLevel::kInfo, "told");
  EXPECT_NE(Text(folder_ + "/log").find(" jaxcoll INFO "), std::string::npos);
}

TEST_F(LogTest, LinesOfManyThreadsStayWholeBehindWhatIsThere) {
  std::ofstream(folder_ + "/log") << "before\n";
  Configure({.log_file = folder_ + "/log"});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([i] {
      for (int round = 0; round < 50; ++round) Log(LogLevel::kWarning, "%d of %d", round, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::istringstream lines(Text(folder_ + "/log"));
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line, "before");
  std::set<std::string> messages;
  while (std::getline(lines, line)) {
    EXPECT_TRUE(IsLine(line)) << line;
    messages.insert(line.substr(line.rfind(": ")));
  }
  EXPECT_EQ(messages.size(), 200u);
}

TEST_F(LogTest, MarksInTheNameStandForHostAndProcess) {
  Configure({.log_file = folder_ + "/%h-%p-%%"});
  EXPECT_TRUE(OpenLogFile().ok());
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  const std::string path = folder_ + "/" + host + "-" + std::to_string(getpid()) + "-%";
  EXPECT_EQ(access(path.c_str(), F_OK), 0) << path;
}

TEST_F(LogTest, AFileThatCannotBeOpenedIsNamedAndStderrHasTheLines) {
  Configure({.log_file = folder_ + "/no/log"});
  const Status status = OpenLogFile();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.message(), folder_ + "/no/log: No such file or directory");
  testing::internal::CaptureStderr();
  Log(LogLevel::kWarning, "one");
  Log(LogLevel::kWarning, "two");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find(status.message()), std::string::npos);
  EXPECT_EQ(text.find(status.message()), text.rfind(status.message()));
  EXPECT_NE(text.find(": one\n"), std::string::npos);
  EXPECT_NE(text.find(": two\n"), std::string::npos);
}

TEST_F(LogTest, APipeThatNobodyReadsIsRefusedAndNotWaitedFor) {
  const std::string path = folder_ + "/pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  Configure({.log_file = path});
  EXPECT_EQ(OpenLogFile().message(), path + ": No such device or address");
}

}  // namespace
}  // namespace jaxcoll
