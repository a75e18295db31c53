// Writes records with Apicurio Registry's serializer for Avro and Kafka's own Java client, then reads the committed records of topics
// with its deserializer, and prints one JSON object a line. It knows nothing of eventspine but what docs/topics.md says.
// Arguments: bootstrap servers, registry URL, topics to read (with commas between), and for each record to write its topic, schema,
// headers (JSON) and value (Avro's JSON).

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

import com.fasterxml.jackson.databind.ObjectMapper;
import io.apicurio.registry.serde.avro.AvroKafkaDeserializer;
import io.apicurio.registry.serde.avro.AvroKafkaSerializer;
import io.apicurio.registry.serde.avro.strategy.TopicRecordIdStrategy;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class ApicurioSerdes {
    public static void main(String[] arguments) throws Exception {
        Map<String, Object> settings = new HashMap<>();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("apicurio.registry.url", arguments[1] + "/apis/registry/v3");

        Map<String, Object> writing = new HashMap<>(settings);
        writing.put("key.serializer", StringSerializer.class);
        writing.put("value.serializer", AvroKafkaSerializer.class);
        writing.put("apicurio.registry.auto-register", true);
        writing.put("apicurio.registry.artifact.group-id", "default");
        writing.put("apicurio.registry.artifact-resolver-strategy", TopicRecordIdStrategy.class.getName());
        ObjectMapper json = new ObjectMapper();
        try (KafkaProducer<String, Object> producer = new KafkaProducer<>(writing)) {
            for (int at = 3; at < arguments.length; at += 4) {
                Schema schema = new Schema.Parser().parse(arguments[at + 1]);
                Object value = new GenericDatumReader<>(schema).read(null, DecoderFactory.get().jsonDecoder(schema, arguments[at + 3]));
                ProducerRecord<String, Object> record = new ProducerRecord<>(arguments[at], value);
                json.readTree(arguments[at + 2]).properties().forEach(each ->
                        record.headers().add(each.getKey(), each.getValue().asText().getBytes(StandardCharsets.UTF_8)));
                producer.send(record).get();
            }
        }

        Map<String, Object> reading = new HashMap<>(settings);
        reading.put("isolation.level", "read_committed");
        reading.put("key.deserializer", StringDeserializer.class);
        reading.put("value.deserializer", AvroKafkaDeserializer.class);
        try (KafkaConsumer<String, Object> consumer = new KafkaConsumer<>(reading)) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (String topic : arguments[2].split(",")) {
                for (PartitionInfo each : consumer.partitionsFor(topic)) {
                    partitions.add(new TopicPartition(topic, each.partition()));
                }
            }
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(each -> consumer.position(each) < ends.get(each))) {
                for (ConsumerRecord<String, Object> record : consumer.poll(Duration.ofSeconds(1))) {
                    System.out.println(json.writeValueAsString(Map.of(
                            "topic", record.topic(), "data", json.readTree(GenericData.get().toString(record.value())))));
                }
            }
        }
    }
}
