"""Sources of preference: a signal scores the answers of a row; `driver.rate` runs any of them."""
