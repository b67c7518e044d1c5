/* Stands between a process and its disk (LD_PRELOAD): counts what is done to files below one folder, writes it down, and
   at a chosen operation kills the process, or lets this operation and what follows fail. Python arms it with ctypes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, SYNC, RENAME, REMOVE, MAKE, RESIZE, NOTE };
enum { COUNT, KILL, HALF, FAIL };

static char root[PATH_MAX];
static size_t root_length;
static int mode, reason, trace = -1;
static long at, counted;

/* From now on count what is done below `folder`; kill before operation `n` (from 1), or in the middle of it when it is a
   write; or let `n` and all that follow fail with `error`. What is done is written to the file descriptor `to`. */
void disk_arm(const char *folder, int what, long n, int error, int to) {
    mode = what, at = n, reason = error, trace = to, counted = 0;
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
}

/* The disk works again; what is done is still written down. */
void disk_relent(void) { mode = COUNT; }

static void record(int kind, long offset, const char *path, const char *other, const void *data, size_t size) {
    if (trace < 0) return;
    int64_t head[5] = {kind, offset, (int64_t)strlen(path), (int64_t)strlen(other), (int64_t)size};
    struct iovec parts[] = {{head, sizeof head}, {(void *)path, head[2]}, {(void *)other, head[3]}, {(void *)data, size}};
    syscall(SYS_writev, trace, parts, 4);
}

void disk_note(const char *text) {
    if (root_length) record(NOTE, 0, text, "", "", 0);
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

static int below(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int of_handle(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = root_length ? readlink(link, out, PATH_MAX - 1) : -1;
    if (got < 0) return 0;
    out[got] = 0;
    return below(out);
}

static int of_name(int folder, const char *name, char *out) {
    char start[PATH_MAX] = "";
    if (!root_length) return 0;
    if (*name != '/') {
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, start, sizeof start) < 0) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t got = readlink(link, start, sizeof start - 1);
            if (got < 0) return 0;
            start[got] = 0;
        }
        strcat(start, "/");
    }
    snprintf(out, PATH_MAX, "%s%s", start, name);
    return below(out);
}

/* 0: go on; 1: go on with half of the data, then die or fail; -1: fail. */
static int turn(int kind) {
    counted++;
    if (mode == KILL && counted == at) die();
    if (mode == HALF && counted == at) {
        if (kind != WRITE) die();
        return 1;
    }
    if (mode == FAIL && counted >= at) {
        if (reason == ENOSPC && kind == REMOVE) return 0; /* what makes room works on a full disk */
        if (reason == ENOSPC && kind == WRITE && counted == at) return 1;
        errno = reason;
        return -1;
    }
    return 0;
}

/* What the kernel said, recorded when it was done. */
static long done(long result, int kind, long offset, const char *path, const char *other, const void *data) {
    if (result >= 0) record(kind, offset, path, other, data, kind == WRITE ? (size_t)result : 0);
    return result;
}

static ssize_t put(int fd, const void *data, size_t size, off_t offset, int positioned) {
    char path[PATH_MAX];
    if (!of_handle(fd, path))
        return positioned ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
    int what = turn(WRITE);
    if (what < 0) return -1;
    if (what) size /= 2;
    if (!positioned) {
        struct stat now;
        if (fcntl(fd, F_GETFL) & O_APPEND) offset = fstat(fd, &now) ? 0 : now.st_size;
        else offset = lseek(fd, 0, SEEK_CUR);
    }
    long result = positioned ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
    done(result, WRITE, offset, path, "", data);
    if (what && mode == HALF) die();
    if (what && !size) return errno = reason, -1;
    return result;
}

ssize_t write(int fd, const void *data, size_t size) { return put(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return put(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return put(fd, data, size, offset, 1); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!of_handle(fd, path)) return syscall(SYS_writev, fd, parts, count);
    return count ? put(fd, parts[0].iov_base, parts[0].iov_len, 0, 0) : 0; /* the caller writes the rest */
}

static int sync_with(int number, int fd) {
    char path[PATH_MAX];
    if (!of_handle(fd, path)) return syscall(number, fd);
    return turn(SYNC) < 0 ? -1 : done(syscall(number, fd), SYNC, 0, path, "", "");
}
int fsync(int fd) { return sync_with(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

static int resize(int fd, off_t size) {
    char path[PATH_MAX];
    if (!of_handle(fd, path)) return syscall(SYS_ftruncate, fd, size);
    return turn(RESIZE) < 0 ? -1 : done(syscall(SYS_ftruncate, fd, size), RESIZE, size, path, "", "");
}
int ftruncate(int fd, off_t size) { return resize(fd, size); }
int ftruncate64(int fd, off_t size) { return resize(fd, size); }

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    if (!of_name(from_folder, from, path) | !of_name(to_folder, to, other))
        return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (turn(RENAME) < 0) return -1;
    return done(syscall(SYS_renameat2, from_folder, from, to_folder, to, flags), RENAME, 0, path, other, "");
}
int renameat(int a, const char *from, int b, const char *to) { return renameat2(a, from, b, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if (!of_name(folder, name, path)) return syscall(SYS_unlinkat, folder, name, flags);
    return turn(REMOVE) < 0 ? -1 : done(syscall(SYS_unlinkat, folder, name, flags), REMOVE, 0, path, "", "");
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t rights) {
    char path[PATH_MAX];
    if (!of_name(folder, name, path)) return syscall(SYS_mkdirat, folder, name, rights);
    return turn(MAKE) < 0 ? -1 : done(syscall(SYS_mkdirat, folder, name, rights), MAKE, 0, path, "", "");
}
int mkdir(const char *name, mode_t rights) { return mkdirat(AT_FDCWD, name, rights); }

static int open_at(int folder, const char *name, int flags, mode_t rights) {
    char path[PATH_MAX];
    if ((flags & O_ACCMODE) == O_RDONLY || !of_name(folder, name, path))
        return syscall(SYS_openat, folder, name, flags, rights);
    struct stat now;
    int there = !stat(path, &now);
    if ((there || !(flags & O_CREAT)) && !(flags & O_TRUNC)) { /* changes nothing yet */
        if (mode == FAIL && reason == EROFS && counted + 1 >= at) return errno = EROFS, -1;
        return syscall(SYS_openat, folder, name, flags, rights);
    }
    if (turn(OPEN) < 0) return -1;
    return done(syscall(SYS_openat, folder, name, flags, rights), OPEN, flags & O_TRUNC ? 0 : -1, path, "", "");
}

#define OPENED(function, folder, given, ...)                                                       \
    int function(__VA_ARGS__, int flags, ...) {                                                     \
        mode_t rights = 0;                                                                          \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                        \
            va_list more;                                                                           \
            va_start(more, flags);                                                                  \
            rights = va_arg(more, mode_t);                                                          \
            va_end(more);                                                                           \
        }                                                                                           \
        return open_at(folder, given, flags, rights);                                               \
    }
OPENED(open, AT_FDCWD, name, const char *name)
OPENED(open64, AT_FDCWD, name, const char *name)
OPENED(openat, folder, name, int folder, const char *name)
OPENED(openat64, folder, name, int folder, const char *name)
