/* Preloaded into a process under test: fails system calls at its C library, and records what it does to a store.

   Injection: of the calls of the armed kinds below a folder, counted over all threads, the n-th fails (or the n-th and all
   later ones). A thread can be spared. Recording: every change below a folder, in the order in which the kernel made it,
   with the data; a sync is recorded when it begins and when it has ended, for only what was there at its beginning is safe.

   Driven from inside by the `fault_` functions, or by the FAULT_ variables; those concern this process, not its children. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SHORT = 1000 }; /* instead of an errno: a write takes half */

static pid_t me;
static char kinds[256], folder[PATH_MAX], armed_by[PATH_MAX], log_path[PATH_MAX];
static long nth;
static int code, onwards, anywhere, hit_log = -1, trace_fd = -1;
static atomic_long seen;
static _Thread_local int spared;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static uint64_t syncs;

/* --- control ------------------------------------------------------------------------------------- */

void fault_folder(const char *path) { snprintf(folder, sizeof folder, "%s", path); me = getpid(); }
void fault_spare(int yes) { spared = yes; }
long fault_seen(void) { return atomic_load(&seen); }
void fault_log(int fd) { hit_log = fd; }
void fault_trace(int fd) { trace_fd = fd; me = getpid(); }
void fault_disarm(void) { kinds[0] = 0; }
void fault_arm(const char *which, long n, int error, int all_later, int everywhere) {
    nth = n, code = error, onwards = all_later, anywhere = everywhere, me = getpid();
    atomic_store(&seen, 0);
    snprintf(kinds, sizeof kinds, ",%s,", which);
}

__attribute__((constructor)) static void begin(void) {
    const char *which = getenv("FAULT_KINDS"), *log = getenv("FAULT_LOG"), *by = getenv("FAULT_ARMED_BY");
    unsetenv("LD_PRELOAD");
    if (!which) return;
    if (log) snprintf(log_path, sizeof log_path, "%s", log);
    if (by) snprintf(armed_by, sizeof armed_by, "%s", by);
    fault_folder(getenv("FAULT_FOLDER"));
    fault_arm(which, atol(getenv("FAULT_NTH")), atoi(getenv("FAULT_ERROR")), getenv("FAULT_ONWARDS") != NULL, getenv("FAULT_ANYWHERE") != NULL);
}

/* --- where --------------------------------------------------------------------------------------- */

static const char *path_of(int fd, char *into) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, into, PATH_MAX - 1);
    into[n > 0 ? n : 0] = 0;
    return into;
}

static const char *path_at(int dir, const char *name, char *into) {
    if (!name) return path_of(dir, into);
    if (name[0] == '/' ) { snprintf(into, PATH_MAX, "%s", name); return into; }
    char base[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; } else path_of(dir, base);
    if (!name[0]) snprintf(into, PATH_MAX, "%s", base);
    else snprintf(into, PATH_MAX, "%s/%s", base, name);
    return into;
}

static int below(const char *path) { size_t n = strlen(folder); return n && !strncmp(path, folder, n) && (path[n] == '/' || !path[n]); }

/* --- injection ----------------------------------------------------------------------------------- */

static int fails(const char *kind, int dir, const char *name) {
    if (!kinds[0] || spared || me != getpid()) return 0;
    char wanted[32], path[PATH_MAX] = "";
    snprintf(wanted, sizeof wanted, ",%s,", kind);
    if (!strstr(kinds, wanted)) return 0;
    if (armed_by[0] && syscall(SYS_faccessat, AT_FDCWD, armed_by, F_OK)) return 0;
    if (dir != INT_MIN) path_at(dir, name, path);
    if (!anywhere && !below(path)) return 0;
    long n = atomic_fetch_add(&seen, 1) + 1;
    if (nth <= 0 || (onwards ? n < nth : n != nth)) return 0;
    char said[PATH_MAX + 100];
    int k = snprintf(said, sizeof said, "%ld %s %s\n", n, kind, path);
    if (log_path[0]) { /* opened only now, for a daemon closes what it finds open at its start */
        int fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        syscall(SYS_write, fd, said, k);
        syscall(SYS_close, fd);
    }
    if (hit_log >= 0) syscall(SYS_write, hit_log, said, k);
    return code;
}
#define NOWHERE INT_MIN
#define FAIL_IF(kind, dir, name) do { int e_ = fails(kind, dir, name); if (e_ == SHORT) break; if (e_) { errno = e_; return -1; } } while (0)

/* --- recording ----------------------------------------------------------------------------------- */

static int recording(void) { return trace_fd >= 0 && me == getpid(); }

static void record(char what, uint64_t a, uint64_t b, const char *one, size_t one_size, const void *two, size_t two_size) {
    struct { char what; char pad[7]; uint64_t a, b, one, two; } head = {what, {0}, a, b, one_size, two_size};
    char *all = malloc(sizeof head + one_size + two_size);
    memcpy(all, &head, sizeof head);
    if (one_size) memcpy(all + sizeof head, one, one_size);
    if (two_size) memcpy(all + sizeof head + one_size, two, two_size);
    for (size_t done = 0, size = sizeof head + one_size + two_size; done < size;) {
        long n = syscall(SYS_write, trace_fd, all + done, size - done);
        if (n <= 0) abort();
        done += n;
    }
    free(all);
}
static void record_paths(char what, uint64_t a, const char *one, const char *two) { record(what, a, 0, one, strlen(one), two, two ? strlen(two) : 0); }
void fault_mark(const char *text) { if (recording()) { pthread_mutex_lock(&order); record_paths('!', 0, text, NULL); pthread_mutex_unlock(&order); } }

static uint64_t inode(int fd) { struct stat s; return syscall(SYS_fstat, fd, &s) ? 0 : s.st_ino; }

#define LOCK int traced_ = recording(); if (traced_) pthread_mutex_lock(&order)
#define UNLOCK do { int e_ = errno; if (traced_) pthread_mutex_unlock(&order); errno = e_; } while (0)
#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* --- files --------------------------------------------------------------------------------------- */

static int opened(int fd, int dir, const char *name, int flags) {
    if (fd >= 0 && (flags & (O_CREAT | O_TRUNC)) && recording()) {
        char path[PATH_MAX];
        struct stat s;
        if (below(path_at(dir, name, path)) && !syscall(SYS_fstat, fd, &s))
            record('o', s.st_ino, (s.st_mode & 07777) << 1 | !!(flags & O_TRUNC), path, strlen(path), NULL, 0);
    }
    return fd;
}
#define MODE mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { va_list v; va_start(v, flags); mode = va_arg(v, mode_t); va_end(v); }
#define OPEN(call) int call(const char *name, int flags, ...) { MODE REAL(int, call, const char *, int, ...); \
    FAIL_IF("open", AT_FDCWD, name); LOCK; int fd = opened(real(name, flags, mode), AT_FDCWD, name, flags); UNLOCK; return fd; }
OPEN(open) OPEN(open64)
#define OPENAT(call) int call(int dir, const char *name, int flags, ...) { MODE REAL(int, call, int, const char *, int, ...); \
    FAIL_IF("open", dir, name); LOCK; int fd = opened(real(dir, name, flags, mode), dir, name, flags); UNLOCK; return fd; }
OPENAT(openat) OPENAT(openat64)

static void wrote(int fd, const void *data, ssize_t n, off_t at) {
    char path[PATH_MAX];
    if (n > 0 && recording() && below(path_of(fd, path)))
        record('w', inode(fd), at >= 0 ? at : lseek(fd, 0, SEEK_CUR) - n, NULL, 0, data, n);
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    int e = fails("write", fd, NULL);
    if (e == SHORT) size = (size + 1) / 2; else if (e) { errno = e; return -1; }
    LOCK; ssize_t n = real(fd, data, size); wrote(fd, data, n, -1); UNLOCK; return n;
}
#define PWRITE(call) ssize_t call(int fd, const void *data, size_t size, off_t at) { REAL(ssize_t, call, int, const void *, size_t, off_t); \
    int e = fails("pwrite64", fd, NULL); if (e == SHORT) size = (size + 1) / 2; else if (e) { errno = e; return -1; } \
    LOCK; ssize_t n = real(fd, data, size, at); wrote(fd, data, n, at); UNLOCK; return n; }
PWRITE(pwrite) PWRITE(pwrite64)
/* Copies in the kernel are not recorded: while we record, callers have to copy by hand. */
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { REAL(ssize_t, sendfile64, int, int, off64_t *, size_t); if (recording()) { errno = EINVAL; return -1; } return real(to, from, at, size); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned); if (recording()) { errno = ENOSYS; return -1; } return real(from, a, to, b, size, flags); }

static void resized(int fd, off_t size) { char path[PATH_MAX]; if (recording() && below(path_of(fd, path))) record('t', inode(fd), size, NULL, 0, NULL, 0); }
#define TRUNCATE(call) int call(int fd, off_t size) { REAL(int, call, int, off_t); FAIL_IF("ftruncate", fd, NULL); \
    LOCK; int r = real(fd, size); if (!r) resized(fd, size); UNLOCK; return r; }
TRUNCATE(ftruncate) TRUNCATE(ftruncate64)
#define ALLOCATE(call) int call(int fd, off_t at, off_t size) { REAL(int, call, int, off_t, off_t); int e = fails("write", fd, NULL); if (e && e != SHORT) return e; \
    LOCK; int r = real(fd, at, size); struct stat s; if (!r && !syscall(SYS_fstat, fd, &s)) resized(fd, s.st_size); UNLOCK; return r; }
ALLOCATE(posix_fallocate) ALLOCATE(posix_fallocate64)

/* --- syncs --------------------------------------------------------------------------------------- */

#define SYNC(call, what) int call(int fd) { REAL(int, call, int); FAIL_IF(#call, fd, NULL); uint64_t number = 0; char path[PATH_MAX]; \
    int traced = recording() && below(path_of(fd, path)); \
    if (traced) { pthread_mutex_lock(&order); number = ++syncs; record(what, inode(fd), number, path, strlen(path), NULL, 0); pthread_mutex_unlock(&order); } \
    int r = real(fd), e = errno; \
    if (traced && !r) { pthread_mutex_lock(&order); record('e', 0, number, NULL, 0, NULL, 0); pthread_mutex_unlock(&order); } \
    errno = e; return r; }
SYNC(fsync, 's') SYNC(fdatasync, 's') SYNC(syncfs, 'S')

/* --- names --------------------------------------------------------------------------------------- */

static int renamed(int r, int d, const char *a, int e, const char *b) {
    char one[PATH_MAX], two[PATH_MAX];
    if (!r && recording() && (below(path_at(d, a, one)) | below(path_at(e, b, two)))) record_paths('r', 0, path_at(d, a, one), path_at(e, b, two));
    return r;
}
static int fails_both(const char *kind, int d, const char *a, int e, const char *b) {
    char path[PATH_MAX];
    return below(path_at(d, a, path)) ? fails(kind, d, a) : fails(kind, e, b);
}
#define FAIL_BOTH(kind, d, a, e, b) do { int e_ = fails_both(kind, d, a, e, b); if (e_ && e_ != SHORT) { errno = e_; return -1; } } while (0)
int rename(const char *a, const char *b) { REAL(int, rename, const char *, const char *); FAIL_BOTH("rename", AT_FDCWD, a, AT_FDCWD, b); LOCK; int r = renamed(real(a, b), AT_FDCWD, a, AT_FDCWD, b); UNLOCK; return r; }
int renameat(int d, const char *a, int e, const char *b) { REAL(int, renameat, int, const char *, int, const char *); FAIL_BOTH("rename", d, a, e, b); LOCK; int r = renamed(real(d, a, e, b), d, a, e, b); UNLOCK; return r; }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { REAL(int, renameat2, int, const char *, int, const char *, unsigned); FAIL_BOTH("rename", d, a, e, b); LOCK; int r = renamed(real(d, a, e, b, f), d, a, e, b); UNLOCK; return r; }

static int named(int r, char what, uint64_t more, int dir, const char *name, const char *text) {
    char path[PATH_MAX];
    if (!r && recording() && below(path_at(dir, name, path))) record_paths(what, more, path, text);
    return r;
}
int mkdir(const char *a, mode_t m) { REAL(int, mkdir, const char *, mode_t); FAIL_IF("mkdir", AT_FDCWD, a); LOCK; int r = named(real(a, m), 'd', m, AT_FDCWD, a, NULL); UNLOCK; return r; }
int mkdirat(int d, const char *a, mode_t m) { REAL(int, mkdirat, int, const char *, mode_t); FAIL_IF("mkdir", d, a); LOCK; int r = named(real(d, a, m), 'd', m, d, a, NULL); UNLOCK; return r; }
int unlink(const char *a) { REAL(int, unlink, const char *); FAIL_IF("unlink", AT_FDCWD, a); LOCK; int r = named(real(a), 'u', 0, AT_FDCWD, a, NULL); UNLOCK; return r; }
int unlinkat(int d, const char *a, int f) { REAL(int, unlinkat, int, const char *, int); FAIL_IF("unlink", d, a); LOCK; int r = named(real(d, a, f), 'u', 0, d, a, NULL); UNLOCK; return r; }
int rmdir(const char *a) { REAL(int, rmdir, const char *); FAIL_IF("unlink", AT_FDCWD, a); LOCK; int r = named(real(a), 'u', 0, AT_FDCWD, a, NULL); UNLOCK; return r; }
int symlink(const char *t, const char *a) { REAL(int, symlink, const char *, const char *); FAIL_IF("open", AT_FDCWD, a); LOCK; int r = named(real(t, a), 'l', 0, AT_FDCWD, a, t); UNLOCK; return r; }
int symlinkat(const char *t, int d, const char *a) { REAL(int, symlinkat, const char *, int, const char *); FAIL_IF("open", d, a); LOCK; int r = named(real(t, d, a), 'l', 0, d, a, t); UNLOCK; return r; }

static int remoded(int r, int dir, const char *name, mode_t m) { return named(r, 'm', m, dir, name, NULL); }
int fchmod(int fd, mode_t m) { REAL(int, fchmod, int, mode_t); FAIL_IF("fchmod", fd, NULL); LOCK; int r = remoded(real(fd, m), fd, NULL, m); UNLOCK; return r; }
int chmod(const char *a, mode_t m) { REAL(int, chmod, const char *, mode_t); FAIL_IF("fchmod", AT_FDCWD, a); LOCK; int r = remoded(real(a, m), AT_FDCWD, a, m); UNLOCK; return r; }
int fchmodat(int d, const char *a, mode_t m, int f) { REAL(int, fchmodat, int, const char *, mode_t, int); FAIL_IF("fchmod", d, a); LOCK; int r = remoded(real(d, a, m, f), d, a, m); UNLOCK; return r; }

/* --- what changes nothing ------------------------------------------------------------------------ */

#define STAT(call) int call(const char *a, struct stat *s) { REAL(int, call, const char *, struct stat *); FAIL_IF("stat", AT_FDCWD, a); return real(a, s); }
STAT(stat) STAT(lstat)
#define STAT64(call) int call(const char *a, struct stat64 *s) { REAL(int, call, const char *, struct stat64 *); FAIL_IF("stat", AT_FDCWD, a); return real(a, s); }
STAT64(stat64) STAT64(lstat64)
int fstat(int fd, struct stat *s) { REAL(int, fstat, int, struct stat *); FAIL_IF("stat", fd, NULL); return real(fd, s); }
int fstat64(int fd, struct stat64 *s) { REAL(int, fstat64, int, struct stat64 *); FAIL_IF("stat", fd, NULL); return real(fd, s); }
int fstatat(int d, const char *a, struct stat *s, int f) { REAL(int, fstatat, int, const char *, struct stat *, int); FAIL_IF("stat", d, a); return real(d, a, s, f); }
int fstatat64(int d, const char *a, struct stat64 *s, int f) { REAL(int, fstatat64, int, const char *, struct stat64 *, int); FAIL_IF("stat", d, a); return real(d, a, s, f); }
int pipe2(int p[2], int f) { REAL(int, pipe2, int *, int); FAIL_IF("pipe2", NOWHERE, NULL); return real(p, f); }
int socketpair(int d, int t, int p, int s[2]) { REAL(int, socketpair, int, int, int, int *); FAIL_IF("pipe2", NOWHERE, NULL); return real(d, t, p, s); }
pid_t fork(void) { REAL(pid_t, fork, void); FAIL_IF("clone", NOWHERE, NULL); return real(); }
pid_t vfork(void) { REAL(pid_t, fork, void); FAIL_IF("clone", NOWHERE, NULL); return real(); } /* a wrapper must not return twice */
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    int e = fails("clone", NOWHERE, NULL); return e ? e : real(t, a, f, x); }
