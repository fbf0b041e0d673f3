"""Records of many nights: where they are kept, what moved between them, why, and a page that shows it."""
