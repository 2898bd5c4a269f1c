"""A blind study in which people compare pictures of several systems, as section 5.4 of the paper did."""
