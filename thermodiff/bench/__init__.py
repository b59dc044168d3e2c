"""The same works by thermodiff and by its rivals, side by side: time, and accuracy beside it.

`works.WORKS` says what is done, `timing.run` does it, and the command ``thermodiff bench`` shows it.
"""
