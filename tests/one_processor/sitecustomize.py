"""Python imports this module at its start if PYTHONPATH names this folder: the tests' commands then count one
processor.

On a CPU, nnU-Net uses as many threads as there are processors, whatever the environment says. Two commands at the same
time then wait for each other's threads and take several times as long; and with another number of threads, sums are
added in another order.
"""

import multiprocessing

multiprocessing.cpu_count = lambda: 1
