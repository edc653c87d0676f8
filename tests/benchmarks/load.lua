-- wrk's script: post one body under pre-signed headers, each delivery with an id of its own.
--   wrk ... -s load.lua URL -- BODY HEADERS [PAUSE_MS]
-- HEADERS has one delivery a line: id, timestamp and signature, separated by tabs. PAUSE_MS is
-- what every connection waits before a request, to load a server less than it could take.

local thread_count = 0

function setup(thread)
  thread:set("number", thread_count)
  thread_count = thread_count + 1
end

function init(args)
  local file = io.open(args[1], "rb")
  body = file:read("*a")
  file:close()
  deliveries = {}
  local line_number = 0
  for line in io.lines(args[2]) do
    if line_number % 2 == number then
      local id, timestamp, signature = line:match("^(%S+)\t(%S+)\t(.+)$")
      deliveries[#deliveries + 1] = { id, timestamp, signature }
    end
    line_number = line_number + 1
  end
  pause_ms = tonumber(args[3] or "0")
  turn = 0
end

function delay()
  return pause_ms
end

function request()
  turn = turn % #deliveries + 1
  local delivery = deliveries[turn]
  return wrk.format("POST", nil, {
    ["content-type"] = "application/json",
    ["webhook-id"] = delivery[1],
    ["webhook-timestamp"] = delivery[2],
    ["webhook-signature"] = delivery[3],
  }, body)
end
