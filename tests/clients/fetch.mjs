// Asks with Node's fetch, one URL after the other: node fetch.mjs SIZE FRAMING URL...
// SIZE is that of the body, 0 for a GET; FRAMING is length or chunked. Prints a line for each URL: its status, or why there is none.

const [size, framing, ...urls] = process.argv.slice(2)

function stream(left) {
  return new ReadableStream({
    pull(controller) {
      const piece = Math.min(left, 65536)
      left -= piece
      if (piece) controller.enqueue(new Uint8Array(piece))
      else controller.close()
    },
  })
}

for (const url of urls) {
  const options = { redirect: 'manual', headers: { 'Content-Type': 'application/octet-stream' } }
  if (Number(size)) {
    options.method = 'POST'
    options.body = framing === 'chunked' ? stream(Number(size)) : new Uint8Array(Number(size))
    options.duplex = 'half'
  }
  try {
    const response = await fetch(url, options)
    await response.arrayBuffer()
    console.log(response.status)
  } catch (error) {
    console.log(`${error}: ${error.cause}`)
  }
}
