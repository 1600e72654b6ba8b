"""What nobody gives back: found, judged by the rules, and given up; SpiderEndpoints are held to the pools."""
