"""Pictures of plans: which block of which tensor fills which block of another, and one page for the review of a
mapping. Nothing here prints."""
