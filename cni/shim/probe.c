/* A probe of the agent: GET of one path over a unix socket, for kubelet's exec probes.
 *
 * Two agents of a node run at once while one replaces the other, on the node's network: a probe by port could be answered
 * by the other one. Each pod has a socket of its own instead, and this costs kubelet a millisecond, not a start of Python.
 */

#include "probe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_S 5 /* kubelet's own timeout is shorter as a rule */

static int no(const char *what, const char *why) {
  printf("%s: %s\n", what, why);
  return 1;
}

int probe(const char *socket_path, const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(socket_path) >= sizeof address.sun_path) return no(socket_path, "too long for a socket");
  strcpy(address.sun_path, socket_path);
  static char text[8192];
  int length = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n", path);
  if (length < 0 || (size_t)length >= sizeof text) return no("path", "too long");

  int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection < 0) return no("socket", strerror(errno));
  struct timeval limit = {.tv_sec = PATIENCE_S};
  setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (connect(connection, (struct sockaddr *)&address, sizeof address) != 0) return no(socket_path, strerror(errno));
  if (send(connection, text, (size_t)length, MSG_NOSIGNAL) != length) return no(socket_path, strerror(errno));

  size_t used = 0;
  while (used < sizeof text - 1) {
    ssize_t got = recv(connection, text + used, sizeof text - 1 - used, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return no(socket_path, strerror(errno));
    if (got == 0) break;
    used += (size_t)got;
  }
  text[used] = '\0';
  char *status = strchr(text, ' ');
  if (strncmp(text, "HTTP/1.", 7) != 0 || status == NULL) return no(socket_path, "no answer");
  if (strtol(status + 1, NULL, 10) == 200) return 0;
  char *body = strstr(text, "\r\n\r\n");
  body = body != NULL && body[4] != '\0' ? body + 4 : status + 1;
  printf("%.*s\n", (int)strcspn(body, "\r\n"), body);
  return 1;
}
