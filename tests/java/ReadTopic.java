// Reads a topic's committed records with Kafka's own Java client, decodes them with Avro's own Java library by the schemas that the
// registry serves, and prints one JSON object a line. It knows nothing of eventspine but what docs/topics.md says.
// Arguments: bootstrap servers, registry URL, topic.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

import com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.utils.Utils;

public class ReadTopic {
    public static void main(String[] arguments) throws Exception {
        Map<String, Object> settings = new HashMap<>();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("isolation.level", "read_committed");
        settings.put("key.deserializer", ByteArrayDeserializer.class);
        settings.put("value.deserializer", ByteArrayDeserializer.class);
        ObjectMapper json = new ObjectMapper();
        HttpClient http = HttpClient.newHttpClient();
        Map<Integer, Schema> schemas = new HashMap<>();

        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
            List<TopicPartition> partitions = new ArrayList<>();
            consumer.partitionsFor(arguments[2]).forEach(each -> partitions.add(new TopicPartition(arguments[2], each.partition())));
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(each -> consumer.position(each) < ends.get(each))) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    ByteBuffer value = ByteBuffer.wrap(record.value());
                    if (value.get() != 0) {
                        throw new IllegalStateException("not in the Confluent wire format");
                    }
                    int id = value.getInt();
                    if (!schemas.containsKey(id)) {
                        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[1] + "/schemas/ids/" + id)).build();
                        String body = http.send(request, BodyHandlers.ofString()).body();
                        schemas.put(id, new Schema.Parser().parse(json.readTree(body).get("schema").asText()));
                    }
                    GenericDatumReader<Object> reader = new GenericDatumReader<>(schemas.get(id));
                    Object data = reader.read(null, DecoderFactory.get().binaryDecoder(record.value(), 5, record.value().length - 5, null));

                    Map<String, Object> line = new HashMap<>();
                    Map<String, String> headers = new HashMap<>();
                    record.headers().forEach(header -> headers.put(header.key(), Utils.utf8(header.value())));
                    line.put("partition", record.partition());
                    line.put("java_partition", Utils.toPositive(Utils.murmur2(record.key())) % partitions.size());
                    line.put("key", Utils.utf8(record.key()));
                    line.put("headers", headers);
                    line.put("data", json.readTree(GenericData.get().toString(data)));
                    System.out.println(json.writeValueAsString(line));
                }
            }
        }
    }
}
