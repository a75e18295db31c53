-- Remove some rows of a projection that was reset, unless that is done by now: then the rows are new ones.
--   KEYS  sweeping; then the rows
--   ARGV  token of the sweep; "last" if these are
--   ->    1 if the sweep goes on
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
for i = 2, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if ARGV[2] == 'last' then
  redis.call('DEL', KEYS[1])
end
return 1
