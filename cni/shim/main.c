/* The CNI executable: passes one call on to the agent and prints its answer. It decides nothing.
 *
 * kubelet's runtime executes it several times for every pod, so it is C, static and small. All rules are in the agent
 * (cni/protocol.py); here is only what cannot be there: VERSION must be answered while no agent runs, a missing agent must be
 * waited for and then reported, and stdout must hold either a whole answer or an error object, never a part. Every verb
 * can be repeated, so a call whose agent goes away without a word is made once more, at the agent that comes next.
 *
 * After an uninstall the executable may have to stay, with nobody to ask: a mark beside it makes it say so by itself.
 *
 * Request: POST /v1/cni, the CNI environment percent-encoded in headers, stdin as the body.
 * Answer: the body goes to stdout, the header Cni-Exit is the exit code.
 *
 * As "spiderpool probe SOCKET PATH" it is a probe instead (probe.c).
 */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

#ifndef SOCKET_PATH
#define SOCKET_PATH "/var/run/spidernet/spiderpool.sock"
#endif

#define UNINSTALLED "spiderpool.uninstalled" /* the mark; cni/install.py makes it */
#define MAX_STDIN (1L << 20)
#define MAX_DRAINED (64L << 20) /* of a stdin that is too long anyway: it may have no end */
#define MAX_ANSWER (8L << 20)
#define MAX_HEADER (48L << 10)
#define PATIENCE_MS 5000 /* how long an agent that restarts is waited for */
#define CALL_MS 110000   /* above the agent's own limits, below kubelet's two minutes */
#define VERSIONS "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""

static void put(const char *text, size_t length) {
  while (length > 0) {
    ssize_t written = write(STDOUT_FILENO, text, length);
    if (written < 0) {
      if (errno == EINTR) continue;
      return;
    }
    text += written;
    length -= (size_t)written;
  }
}

/* Prints a CNI error object and ends. The message may hold a path: it is escaped. */
static void fail(int code, const char *message, const char *details) {
  static char out[8192];
  size_t used = (size_t)snprintf(out, sizeof out, "{\"cniVersion\":\"1.1.0\",\"code\":%d,\"msg\":\"", code);
  const char *parts[2] = {message, details};
  for (int part = 0; part < 2; part++) {
    if (part == 1) used += (size_t)snprintf(out + used, sizeof out - used, "\",\"details\":\"");
    for (const unsigned char *c = (const unsigned char *)parts[part]; *c && used < sizeof out - 64; c++) {
      if (*c == '"' || *c == '\\') out[used++] = '\\';
      if (*c < 0x20)
        used += (size_t)snprintf(out + used, sizeof out - used, "\\u%04x", *c);
      else
        out[used++] = (char)*c;
    }
  }
  used += (size_t)snprintf(out + used, sizeof out - used, "\"}\n");
  put(out, used);
  exit(1);
}

static long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

static char *allocate(size_t size) {
  char *memory = malloc(size);
  if (memory == NULL) fail(5, "out of memory", "");
  return memory;
}

/* All of stdin; `length` gets its size. Ends with an error when it is longer than the agent takes. */
static char *read_stdin(size_t *length) {
  char *body = allocate(MAX_STDIN + 1);
  size_t used = 0;
  for (;;) {
    ssize_t got = read(STDIN_FILENO, body + used, MAX_STDIN + 1 - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(5, "stdin cannot be read", strerror(errno));
    if (got == 0) break;
    used += (size_t)got;
    if (used > MAX_STDIN) {
      /* The runtime is still writing: take the rest, or it gets SIGPIPE instead of our answer. */
      static char sink[65536];
      unsigned long total = used;
      for (ssize_t more; total < MAX_DRAINED && (more = read(STDIN_FILENO, sink, sizeof sink)) != 0;) {
        if (more < 0 && errno != EINTR) break;
        if (more > 0) total += (unsigned long)more;
      }
      char text[128];
      snprintf(text, sizeof text, "stdin: the network configuration has %s%lu bytes, at most %ld are taken",
               total < MAX_DRAINED ? "" : "more than ", total, MAX_STDIN);
      fail(7, text, "");
    }
  }
  *length = used;
  return body;
}

/* One header line with the percent-encoded value; nothing when the value is absent. */
static size_t header(char *out, size_t used, const char *name, const char *value) {
  static const char hex[] = "0123456789ABCDEF";
  if (value == NULL || *value == '\0') return used;
  if (3 * strlen(value) + strlen(name) + used + 64 > MAX_HEADER) fail(4, "the environment is too long", name);
  used += (size_t)sprintf(out + used, "%s: ", name);
  for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
    if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("/-_.~", *c)) {
      out[used++] = (char)*c;
    } else {
      out[used++] = '%';
      out[used++] = hex[*c >> 4];
      out[used++] = hex[*c & 15];
    }
  }
  out[used++] = '\r';
  out[used++] = '\n';
  return used;
}

/* Whether the mark lies beside this executable. */
static int uninstalled(void) {
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof UNINSTALLED);
  if (length <= 0) return 0;
  path[length] = '\0';
  char *slash = strrchr(path, '/');
  if (slash == NULL) return 0;
  strcpy(slash + 1, UNINSTALLED);
  return access(path, F_OK) == 0;
}

/* Nobody listens and nobody will: what is being removed goes, so that no pod hangs; nothing new is made. */
static void answer_uninstalled(const char *command) {
  if (command != NULL && (strcmp(command, "DEL") == 0 || strcmp(command, "GC") == 0)) exit(0);
  fail(command != NULL && strcmp(command, "STATUS") == 0 ? 50 : 11, "Spiderpool was uninstalled from this node",
       "its CNI configuration was left since no other was there: install a CNI plugin, then remove 00-spiderpool.conflist");
}

/* A connection to the agent, waited for while it restarts. */
static int dial(const char *path, const char *command, long give_up) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char text[512];
  if (strlen(path) >= sizeof address.sun_path) fail(4, "SPIDERPOOL_SOCKET is too long for a socket", path);
  strcpy(address.sun_path, path);
  for (long pause = 2;; pause = pause < 100 ? pause * 2 : 100) {
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0) fail(5, "no socket can be made", strerror(errno));
    /* An agent that hangs leaves its queue of connections full: connect would wait for ever. */
    struct timeval limit = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(connection, (struct sockaddr *)&address, sizeof address) == 0) return connection;
    int problem = errno;
    close(connection);
    if ((problem == ENOENT || problem == ECONNREFUSED) && uninstalled()) answer_uninstalled(command);
    if (now_ms() >= give_up) {
      snprintf(text, sizeof text, "the agent does not answer on its socket %s", path);
      fail(11, text, strerror(problem));
    }
    poll(NULL, 0, (int)pause);
  }
}

static void send_all(int connection, const char *data, size_t length, const char *path) {
  while (length > 0) {
    ssize_t sent = send(connection, data, length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      /* The agent may have refused before it read everything: then its answer is there to be read. */
      if (errno == EPIPE || errno == ECONNRESET) return;
      fail(11, errno == EAGAIN ? "the agent does not read from its socket" : "the agent's connection broke, socket", path);
    }
    data += sent;
    length -= (size_t)sent;
  }
}

/* The whole answer, zero-terminated. NULL when the agent went away without a byte: ECONNRESET is from one that had not
 * read the request, the end of file from one that died over it. `unread` says which. */
static char *receive_all(int connection, size_t *length, int *unread, const char *path) {
  char *answer = allocate(MAX_ANSWER + 1);
  size_t used = 0;
  long give_up = now_ms() + CALL_MS;
  for (;;) {
    struct pollfd wait = {.fd = connection, .events = POLLIN};
    long left = give_up - now_ms();
    if (left <= 0) fail(11, "the agent did not answer in time on its socket", path);
    int ready = poll(&wait, 1, (int)left);
    if (ready <= 0) continue;
    ssize_t got = recv(connection, answer + used, MAX_ANSWER - used, 0);
    if (got < 0 && errno == EINTR) continue;
    if (used == 0 && (got == 0 || (got < 0 && errno == ECONNRESET))) {
      *unread = got < 0;
      free(answer);
      return NULL;
    }
    if (got < 0 && errno == ECONNRESET) break; /* refused before it was read: the answer is here */
    if (got < 0) fail(11, "the agent's connection broke while it worked, socket", path);
    if (got == 0) break;
    used += (size_t)got;
    if (used >= MAX_ANSWER) fail(5, "the agent's answer is too long", path);
  }
  answer[used] = '\0';
  *length = used;
  return answer;
}

int main(int argc, char **argv) {
  struct timespec start;
  clock_gettime(CLOCK_REALTIME, &start);
  if (argc == 4 && strcmp(argv[1], "probe") == 0) return probe(argv[2], argv[3]);
  const char *command = getenv("CNI_COMMAND");
  if (command != NULL && strcmp(command, "VERSION") == 0) {
    static const char versions[] = "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[" VERSIONS "]}\n";
    put(versions, sizeof versions - 1);
    return 0;
  }
  const char *path = getenv("SPIDERPOOL_SOCKET");
  if (path == NULL || *path == '\0') path = SOCKET_PATH;
  const char *name = argc > 0 && argv[0] != NULL ? argv[0] : "";
  const char *slash = strrchr(name, '/');
  if (slash != NULL) name = slash + 1;

  size_t length = 0;
  char *body = read_stdin(&length);
  char *head = allocate(MAX_HEADER);
  size_t used = (size_t)sprintf(head, "POST /v1/cni HTTP/1.1\r\nHost: spiderpool\r\n");
  used = header(head, used, "Cni-Type", name);
  used = header(head, used, "Cni-Command", command);
  used = header(head, used, "Cni-Containerid", getenv("CNI_CONTAINERID"));
  used = header(head, used, "Cni-Netns", getenv("CNI_NETNS"));
  used = header(head, used, "Cni-Ifname", getenv("CNI_IFNAME"));
  used = header(head, used, "Cni-Args", getenv("CNI_ARGS"));
  used = header(head, used, "Cni-Path", getenv("CNI_PATH"));
  used += (size_t)sprintf(head + used, "Cni-Start: %lld%09ld\r\nContent-Length: %zu\r\n\r\n", (long long)start.tv_sec,
                          start.tv_nsec, length);

  size_t received = 0;
  char *answer;
  int unread = 0, repeated = 0;
  for (long give_up = now_ms() + PATIENCE_MS;;) {
    int connection = dial(path, command, give_up);
    send_all(connection, head, used, path);
    send_all(connection, body, length, path);
    answer = receive_all(connection, &received, &unread, path);
    if (answer != NULL) break;
    close(connection);
    if (unread) {
      if (now_ms() >= give_up) fail(11, "the agent stops before it reads the request, socket", path);
    } else {
      if (repeated++) fail(11, "the agent went away while it worked, socket", path);
      give_up = now_ms() + PATIENCE_MS;
    }
    poll(NULL, 0, 20);
  }

  char *end = strstr(answer, "\r\n\r\n");
  if (end == NULL) fail(11, "the agent went away while it worked, socket", path);
  char *content = end + 4;
  size_t size = received - (size_t)(content - answer);
  *end = '\0';
  char *announced = strstr(answer, "\r\nContent-Length: ");
  char *code = strstr(answer, "\r\nCni-Exit: ");
  if (announced == NULL || strtoul(announced + 18, NULL, 10) != size) fail(11, "the agent's answer is cut short, socket", path);
  if (code == NULL) fail(999, "the agent refused the call", content);
  put(content, size);
  return atoi(code + 12);
}
