// Reads a topic with KafkaJS and its client of Confluent's schema registry, prints each record as a JSON object, and then writes one
// record to a second topic. It knows nothing of eventspine but what docs/topics.md says.
// Arguments: bootstrap servers, registry URL, topic, how many records it holds, second topic, subject, headers and data (JSON).

const { Kafka, Partitioners, logLevel } = require("kafkajs");
const { SchemaRegistry } = require("@kafkajs/confluent-schema-registry");

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
