import sys

sys.path.insert(0, "/tmp/h/mtp")
from cmp import *
# accuracy per position of theirs: patch a server to report drafts
