"""The process that runs builds: started as ``python -P -m pylightnix.worker CONTROL_FD OWNER_FD`` by whoever schedules them.

It runs in the user's own environment, so it imports the standard library, msgpack, cloudpickle and this
package only, until builds have shown what else they need. Project files are never imported here, but in
the forked process of each build, so that every build sees them as they are.

- One thread. It waits for the control connection and for the ends of processes, and forks for every build.
- It and every build are child subreapers: whatever a build leaves behind becomes the worker's child, and
  a child that the worker did not fork is killed. A build has ended when nothing of it is alive.
- When the control connection ends, everything is killed and the worker exits; until then it holds the
  owner descriptor open, so that others can see whether it is gone.

Without this package in the environment the interpreter says ``No module named 'pylightnix'`` on its
standard error and exits with status 1, before anything is said on the control connection.

Must not know what is scheduled or why, nor touch a store other than by reading what a build reads.
"""
