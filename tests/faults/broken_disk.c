/* A disk that breaks: preloaded into a process, it counts the operations that change files under a folder (open for
 * writing, write, truncate, fsync, rename, mkdir, unlink, rmdir). From the n-th on each fails with a chosen error; with
 * error 0 the process is killed right before the n-th. FAULT_UNDER, FAULT_AT and FAULT_ERROR choose them; with
 * FAULT_READS the n-th read of a file fails instead. The variables are read at each call, so that a process can fork and
 * set them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long calls;

static int under(const char *path) {
    const char *folder = getenv("FAULT_UNDER");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int fails_as(int reads) {
    if (reads != (getenv("FAULT_READS") != NULL)) return 0;
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    const char *at = getenv("FAULT_AT");
    if (!at || number < atol(at)) return 0;
    errno = atoi(getenv("FAULT_ERROR"));
    if (!errno) kill(getpid(), SIGKILL);
    return 1;
}

static int fails(void) {
    return fails_as(0);
}

/* A full disk lets files be removed and shortened. */
static int fails_to_remove(void) {
    return fails() && errno != ENOSPC;
}

static int under_descriptor(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return under(path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && under(path) && fails()) return -1;
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened("open64", path, flags, mode);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    return under_descriptor(descriptor) && fails() ? -1 : real(descriptor, data, size);
}

ssize_t read(int descriptor, void *data, size_t size) {
    REAL(read);
    return getenv("FAULT_READS") && under_descriptor(descriptor) && fails_as(1) ? -1 : real(descriptor, data, size);
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    return under_descriptor(descriptor) && fails_to_remove() ? -1 : real(descriptor, size);
}

int fsync(int descriptor) {
    REAL(fsync);
    return under_descriptor(descriptor) && fails() ? -1 : real(descriptor);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return under(from) && fails() ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return under(path) && fails() ? -1 : real(path, mode);
}

int unlink(const char *path) {
    REAL(unlink);
    return under(path) && fails_to_remove() ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return under_descriptor(folder) && fails_to_remove() ? -1 : real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    return under(path) && fails_to_remove() ? -1 : real(path);
}

long fault_calls(void) { return calls; }
