#ifndef SPIDERPOOL_PROBE_H
#define SPIDERPOOL_PROBE_H

/* Returns the exit code: 0 when the answer is 200; else 1, and a line on stdout says why. */
int probe(const char *socket_path, const char *path);

#endif
