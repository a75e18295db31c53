// What a program written for KurrentDB does, with the official client for Node. Argument: the connection string. Prints `done`.

const assert = require("node:assert");
const { randomUUID } = require("node:crypto");
const kurrent = require("@kurrent/kurrentdb-client");
const { KurrentDBClient, jsonEvent, binaryEvent, NO_STREAM, ANY, BACKWARDS, START, eventTypeFilter } = kurrent;

async function collect(events) {
  const found = [];
  for await (const event of events) found.push(event);
  return found;
}

async function main([uri]) {
  const client = KurrentDBClient.connectionString(uri);
  const kind = `Order${randomUUID().replaceAll("-", "")}`;
  const stream = `${kind}-1`;
  const events = [1, 2, 3].map((n) => jsonEvent({ type: kind, data: { n }, metadata: { by: "node" } }));

  await assert.rejects(collect(client.readStream(stream)), (error) => error.type === "stream-not-found");
  const first = await client.appendToStream(stream, events[0], { streamState: NO_STREAM });
  assert.equal(first.nextExpectedRevision, 0n);
  await client.appendToStream(stream, events.slice(1), { streamState: 0n });
  await assert.rejects(
    client.appendToStream(stream, [jsonEvent({ type: kind, data: {} })], { streamState: NO_STREAM }),
    (error) => error.type === "wrong-expected-version" && error.actualState === 2n,
  );

  const read = await collect(client.readStream(stream));
  assert.deepEqual(read.map(({ event }) => event.data.n), [1, 2, 3]);
  assert.deepEqual(read.map(({ event }) => event.id), events.map(({ id }) => id));
  assert.deepEqual(read[0].event.metadata, { by: "node" });
  const last = await collect(client.readStream(stream, { direction: BACKWARDS, fromRevision: "end", maxCount: 1 }));
  assert.equal(last[0].event.revision, 2n);
  const links = await collect(client.readStream(`$ce-${kind}`, { resolveLinkTos: true }));
  assert.deepEqual(links.map(({ event }) => event.id), events.map(({ id }) => id));

  const raw = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
  await client.appendToStream("any name at all " + kind, binaryEvent({ type: "raw", data: raw }), { streamState: ANY });
  const [bytes] = await collect(client.readStream("any name at all " + kind));
  assert.ok(Buffer.from(bytes.event.data).equals(raw));

  const subscription = client.subscribeToAll({ fromPosition: START, filter: eventTypeFilter({ prefixes: [kind] }) });
  const seen = [];
  for await (const { event } of subscription) {
    seen.push(event.data.n);
    if (seen.length === 3) break;
  }
  assert.deepEqual(seen, [1, 2, 3]);

  await client.createPersistentSubscriptionToStream(
    stream,
    kind,
    kurrent.persistentSubscriptionToStreamSettingsFromDefaults({ startFrom: START }));
  const persistent = client.subscribeToPersistentSubscriptionToStream(stream, kind);
  const given = [];
  for await (const resolved of persistent) {
    given.push(resolved.event.revision);
    await persistent.ack(resolved);
    if (given.length === 3) break;
  }
  assert.equal(given.length, 3);
  await persistent.unsubscribe();
  await client.deletePersistentSubscriptionToStream(stream, kind);

  await client.setStreamMetadata(stream, { maxCount: 1, owner: "node" });
  assert.deepEqual((await client.getStreamMetadata(stream)).metadata, { maxCount: 1, owner: "node" });
  assert.equal((await collect(client.readStream(stream))).length, 1);
  await client.deleteStream(stream);
  await assert.rejects(collect(client.readStream(stream)), (error) => error.type === "stream-not-found");
  await client.tombstoneStream(stream);
  await assert.rejects(collect(client.readStream(stream)), (error) => error.type === "stream-deleted");
  await client.dispose();
  console.log("done");
}

main(process.argv.slice(2)).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
