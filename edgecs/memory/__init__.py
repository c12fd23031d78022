"""The user's own store of texts: kept on this machine, looked up for drafts."""
