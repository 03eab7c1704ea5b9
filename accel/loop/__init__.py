"""The loop of a decoding: slots, windows, captured graphs; knows no rule by name and no drafts."""
