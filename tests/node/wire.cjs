// Reads a topic with KafkaJS and its client of Confluent's schema registry, prints each record as a JSON object, and then writes one
// record to a second topic. It knows nothing of eventspine but what docs/topics.md says.
// Arguments: bootstrap servers, registry URL, topic, how many records it holds, second topic, subject, headers and data (JSON).

const { Kafka, CompressionTypes, CompressionCodecs, Partitioners, logLevel } = require("kafkajs");
const { SchemaRegistry } = require("@kafkajs/confluent-schema-registry");

// KafkaJS knows gzip only; the relay compresses with LZ4, in LZ4's own frames of independent blocks.
// Source: https://github.com/lz4/lz4/blob/v1.10.0/doc/lz4_Frame_format.md and lz4_Block_format.md beside it
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async () => { throw new Error("nothing is compressed here"); },
  decompress: async (frame) => {
    const flags = frame[4];
    let place = 7 + (flags & 8 ? 8 : 0); // magic, flags, block size, content size, checksum
    const blocks = [];
    for (let size; (size = frame.readUInt32LE(place)) !== 0; ) {
      place += 4;
      const stored = size >>> 31 === 1;
      const block = frame.subarray(place, place + (size & 0x7fffffff));
      blocks.push(stored ? block : unpack(block));
      place += block.length + (flags & 16 ? 4 : 0);
    }
    return Buffer.concat(blocks);
  },
});

function unpack(block) {
  const bytes = [];
  let place = 0;
  const length = (nibble) => {
    let sum = nibble;
    if (nibble === 15) for (let more = 255; more === 255; sum += more) more = block[place++];
    return sum;
  };
  while (place < block.length) {
    const token = block[place++];
    for (let left = length(token >> 4); left > 0; left--) bytes.push(block[place++]);
    if (place >= block.length) break; // the last sequence has literals only
    const from = bytes.length - block.readUInt16LE(place);
    place += 2;
    const matched = length(token & 15) + 4;
    for (let number = 0; number < matched; number++) bytes.push(bytes[from + number]);
  }
  return Buffer.from(bytes);
}

async function main([bootstrap, registryUrl, topic, count, secondTopic, subject, headers, data]) {
  const kafka = new Kafka({ clientId: "wire", brokers: bootstrap.split(","), logLevel: logLevel.ERROR });
  const registry = new SchemaRegistry({ host: registryUrl });

  const consumer = kafka.consumer({ groupId: `wire-${topic}`, readUncommitted: false, maxWaitTimeInMs: 100 });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  let left = Number(count);
  await new Promise((resolve, reject) => {
    consumer.on(consumer.events.CRASH, (event) => reject(event.payload.error));
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        const told = Object.fromEntries(Object.entries(message.headers).map(([name, value]) => [name, value.toString()]));
        const decoded = await registry.decode(message.value);
        console.log(JSON.stringify({ partition, key: message.key.toString(), headers: told, data: decoded }));
        if (--left === 0) resolve();
      },
    });
  });
  await consumer.disconnect();

  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  const value = await registry.encode(await registry.getLatestSchemaId(subject), JSON.parse(data));
  const told = JSON.parse(headers);
  await producer.send({ topic: secondTopic, messages: [{ key: told.ce_subject, value, headers: told }] });
  await producer.disconnect();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
